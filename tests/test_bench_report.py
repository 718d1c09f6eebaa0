"""The README's account of speed: every number from the results, stale ones found, plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import readme
from bench.__main__ import main
from bench.plots import SERIES_SHOWN, fingerprint, made_from
from bench.stored import BadResults

from .bench_results import growth_content, run_content, side

TEXT = f"# Title\n\nbefore\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A README and two files of results below it."""
    (tmp_path / "README.md").write_text(TEXT)
    write(tmp_path, "cpu", run_content())
    write(tmp_path, "cpu-growth", growth_content())
    return tmp_path


def write(folder: Path, name: str, content: dict) -> None:
    results = folder / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(content))


def report(folder: Path, *options: str) -> int:
    places = ["--results", str(folder / "bench" / "results")]
    return main(["report", *places, "--readme", str(folder / "README.md"), *options])


def cells(text: str, first: str) -> list[str]:
    """The row of a table that begins with a cell."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def heads(text: str) -> list[list[str]]:
    """The first rows of the tables of a run."""
    lines = [line for line in text.splitlines() if line.startswith("| one training step |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_a_run():
    text = readme.speed_text({"cpu": run_content()}, "results")
    (head, narrow), dense = heads(text), cells(text, "dense")
    row = dict(zip(head, dense, strict=True))
    assert row["fastlif"] == "100 ms [90.0 ms - 120 ms]"
    assert row["plain loop"] == "700 ms, 7.0x" and row["snnTorch"] == "1.50 s, 15.0x"
    assert row["compiled loop"] == "-" and row["share of floor"] == "25%"
    assert row["fastest opponent"] == "**7.0x**"  # an LSTM is another network
    assert row["memory of a step"] == "100 MB (400 MB)"
    assert row["of the opponents, least"] == "120 MB (420 MB), **1.2x**"
    # What ran beside one opponent alone has a narrower table; ratios are those of turns.
    wide = dict(zip(narrow, cells(text, "wide"), strict=True))
    assert "snnTorch" in head and "snnTorch" not in narrow
    assert wide["plain loop"] == "900 ms, 4.0x" and wide["fastest opponent"] == "**4.0x**"
    conv = dict(zip(head, cells(text, "conv (busy machine)"), strict=True))
    assert conv["fastest opponent"] == "**6.4x**" and conv["snnTorch"] == "-"
    assert conv["of the opponents, least"] == "2.70 GB (3.00 GB), 50 steps alone"
    assert "- snnTorch: resets one step later." in text
    assert "- Opponents timed over fewer steps and scaled: conv (50)." in text
    assert "- conv, compiled loop: compiled in 61.0 s." in text
    assert "- conv, snnTorch: not installed." in text
    assert "2 threads, avx512, a processor; torch 2.13, commit abc; `python -m bench run" in text


def test_packed_input_is_fastlifs_time_where_both_were_measured():
    content = run_content()
    sides = content["cases"][0]["sides"]
    del sides["fastlif"]
    sides |= {"fastlif-float": side(0.2), "fastlif-packed": side(0.05)}
    assert cells(readme.run_tables(content)[0], "dense")[2].startswith("50.0 ms")
    assert "fastlif-float" not in readme.run_tables(content)[0]
    for name in ("fastlif-float", "fastlif-packed"):
        del sides[name]
    with pytest.raises(BadResults, match="loop"):
        readme.run_tables(content)[0]


def test_the_table_of_growth_and_the_depth():
    content = growth_content()
    content["series"][0]["slope"]["fastlif"] = 1.0234
    content["series"][0]["points"][-1]["sides"]["fastlif"]["peak_rss"] += 5_000_000
    text = readme.speed_text({"cpu-growth": content}, "results")
    slopes = ["1.02", "1.00 (up to 320)", "38 MB to 38 MB", "62 MB to 67 MB"]
    assert cells(text, "time") == ["time", "32", "3200", *slopes]
    assert cells(text, "depth")[1:5] == ["1", "4", "1.00", "1.00"]
    assert "within" not in text and "fits into 20 GiB" in text
    assert "fastlif **48**, plain loop at least **7**." in text


def test_the_report_is_written_and_then_not_stale(folder, capsys):
    assert report(folder, "--check") == 1
    assert "README.md" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == TEXT  # a check writes nothing
    assert not list((folder / "bench" / "results").glob("*.svg"))
    assert report(folder) == 0 and report(folder, "--check") == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# Title\n\nbefore\n") and text.endswith("\n\nafter\n")
    assert "old" not in text and "**7.0x**" in text
    plots = sorted(path.name for path in (folder / "bench" / "results").glob("*.svg"))
    assert plots == ["cpu-growth-memory.svg", "cpu-growth-time.svg", "cpu-ratios.svg"]
    assert all(f"](bench/results/{name})" in text for name in plots)


@pytest.mark.parametrize("spoiled", ["number", "README", "plot", "removed", "unplotted number"])
def test_what_is_stale_is_found(folder, spoiled, capsys):
    assert report(folder) == 0
    path = folder / "bench" / "results" / "cpu-ratios.svg"
    content = run_content()
    if spoiled == "number":
        content["cases"][0]["sides"]["loop"]["times"]["step"]["median"] = 0.8
        write(folder, "cpu", content)
    elif spoiled == "unplotted number":
        content["cases"][0]["sides"]["loop"]["kept_bytes"] += 1
        write(folder, "cpu", content)
    elif spoiled == "README":
        text = (folder / "README.md").read_text()
        (folder / "README.md").write_text(text.replace("7.0x", "70x"))
    elif spoiled == "plot":
        path.write_text(path.read_text().replace(made_from(path) or "", 64 * "0"))
    else:
        path.unlink()
    capsys.readouterr()
    assert report(folder, "--check") == 1
    stale = capsys.readouterr().err
    assert ("README.md" in stale) == (spoiled in ("number", "README"))
    assert ("cpu-ratios.svg" in stale) == (spoiled != "README")
    assert "growth" not in stale


def test_plots_are_small_say_what_they_show_and_depend_on_the_results_alone(folder):
    content = growth_content()
    points = content["series"][0]["points"]
    names = [{"name": name, "variable": name} for name in SERIES_SHOWN]
    content["series"] = [{**one, "points": points, "slope": {"fastlif": 1.0}} for one in names]
    write(folder, "cpu-growth", content)
    assert report(folder) == 0
    results = folder / "bench" / "results"
    first = {path.name: path.read_bytes() for path in results.glob("*.svg")}
    assert max(map(len, first.values())) < 100_000
    drawn = first["cpu-growth-time.svg"].decode()
    for name in SERIES_SHOWN:
        assert f">{name}, fastlif's slope 1.00<" in drawn
    for words in ("plain loop", "snnTorch", "LSTM", ">15.0<"):
        assert words in first["cpu-ratios.svg"].decode()
    assert "plain loop, kept" in first["cpu-growth-memory.svg"].decode()
    for path in results.glob("*.svg"):
        path.unlink()
    assert report(folder) == 0
    assert first == {path.name: path.read_bytes() for path in results.glob("*.svg")}
    assert made_from(results / "cpu-growth-time.svg") == fingerprint(content)


def test_results_that_no_report_can_be_made_of(folder, tmp_path, capsys):
    write(folder, "older", {"cases": [{"packed": {}, "loop": {}}]})
    assert report(folder) == 1
    assert "older.json has another form" in capsys.readouterr().err
    (folder / "bench" / "results" / "older.json").unlink()
    for text in ("no marker", TEXT + TEXT, f"{readme.END}\n{readme.BEGIN}\n"):
        (folder / "README.md").write_text(text)
        assert report(folder) == 1 and "the README" in capsys.readouterr().err
        assert (folder / "README.md").read_text() == text
    for path in (folder / "bench" / "results").glob("*.json"):
        path.unlink()
    assert report(folder) == 1
    assert "no results" in capsys.readouterr().err


def test_the_readme_has_its_markers():
    text = readme.README.read_text()
    before, after = text.split(readme.BEGIN)[0], text.split(readme.END)[1]
    assert readme.replaced(text, "numbers").startswith(before + readme.BEGIN)
    assert before.rstrip().splitlines()[-1].endswith("says how it measures.")
    assert "\n## Reproducibility" in after


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.09997, "100 ms"),
        (0.9994, "999 ms"),
        (1.0, "1.00 s"),
        (12.3, "12.3 s"),
    ],
)
def test_times_have_three_digits(seconds, text):
    assert readme.seconds_text(seconds) == text
