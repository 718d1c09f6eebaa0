"""Damaged sweep files: every mistake is told by line and key before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlif.sweep import SpecError, read_spec
from tests.sweep_files import RIGHT, event_folder, read, write

# Name of the case; what of RIGHT is replaced by what; line, key and part of the one message.
# DATA stands for a folder of event files.
DAMAGED = [
    ("unknown key at the top", "seeds: 2", "sedes: 2", 7, "sedes", "did you mean 'seeds'?"),
    ("unknown setting", "batch_size", "batchsize", 3, "settings.batchsize", "'batch_size'"),
    ("unknown varied option", "sigma_u:", "sigma_uu:", 5, "search.sigma_uu", "'sigma_u'"),
    ("unknown key of an axis", "points", "point", 6, "search.lr.point", "'points'"),
    ("option at the top", "seeds", "epochs: 3\nseeds", 7, "epochs", "below settings"),
    ("seed as an option", "{epochs: 4", "{seed: 4", 3, "settings.seed", "seeds, a key"),
    ("key given twice", "seeds: 2", "name: big", 7, "name", "is also in line 1"),
    ("wrong type of a setting", "epochs: 4", "epochs: 4.5", 3, "settings.epochs",
     "must be a whole number, got 4.5"),
    ("word for a number in a grid", "0.5, 1", "0.5, one", 5, "search.sigma_u[1]",
     "must be a number, got 'one'"),
    ("truth value for a number", "[0.5, 1]", "[true]", 5, "search.sigma_u[0]", "got true"),
    ("empty grid", "[0.5, 1]", "[]", 5, "search.sigma_u", "must hold a value at least"),
    ("value twice in a grid", "0.5, 1", "1, 1.0", 5, "search.sigma_u[1]", "is also in line 5"),
    ("fixed value as an axis", "[0.5, 1]", "0.5", 5, "search.sigma_u", "stands below settings"),
    ("empty seeds", "seeds: 2", "seeds: []", 7, "seeds", "must hold a seed at least"),
    ("no seeds", "seeds: 2", "seeds: 0", 7, "seeds", "must be a number of seeds, at least 1"),
    ("seeds without end", "seeds: 2", "seeds: 9000000000", 7, "seeds", "must be at most 1000000"),
    ("trials without end", "seeds: 2", "seeds: 200000", 4, "search",
     "must give at most 1000000 trials, seeds included, got 1200000"),
    ("seed twice", "seeds: 2", "seeds: [3,\n  1,\n  3]", 9, "seeds[2]", "is also in line 7"),
    ("unknown preset", "randman", "randmann", 2, "preset", "must be one of randman, shd-dense"),
    ("preset missing", "preset: randman", "", 1, "preset", "must be given"),
    ("setting that is refused", "epochs: 4", "epochs: 0", 3, "settings.epochs",
     "must be at least 1, got 0"),
    ("value of a grid that is refused", "0.5, 1", "0.5,\n    -1", 6, "search.sigma_u[1]",
     "must be finite and > 0, got -1.0"),
    ("value of a range that is refused", "[0.5, 1]", "{range: [-1, 1], points: 5}", 5,
     "search.sigma_u.range", "must be finite and > 0, got -1.0"),
    ("range the wrong way round", "[1e-3, 1e-1]", "[1e-1, 1e-3]", 6, "search.lr.log_range",
     "the lower one first"),
    ("logarithm of 0", "[1e-3, 1e-1]", "[0, 1e-1]", 6, "search.lr.log_range", "above 0"),
    ("range without points", ", points: 3", "", 6, "search.lr.points", "must be given"),
    ("more points than whole numbers", "sigma_u: [0.5, 1]",
     "channel_shift: {range: [1, 4], points: 9}", 5, "search.channel_shift.points",
     "must be at most 4"),
    ("range of words", "sigma_u: [0.5, 1]", "optimizer: {range: [1, 4], points: 9}",
     5, "search.optimizer.range", "optimizer takes no numbers"),
    ("random without samples", "[0.5, 1]", "{uniform: [0.5, 1]}", 5, "search.sigma_u",
     "samples must say how often"),
    ("samples without random", "seeds: 2", "samples: 9", 7, "samples", "search has none"),
    ("fixed and varied", "epochs: 4", "lr: 1", 6, "search.lr", "is fixed in line 3"),
    ("no influence on results", "sigma_u: [0.5, 1]", "graph: [true, false]", 5, "search.graph",
     "has no influence on results"),
    ("settings that exclude each other", "epochs: 4", "sigma_w: 1", 3, "settings.sigma_w",
     'are for initialization "normal"'),
    ("setting that is missing", "epochs: 4", "initialization: normal", 3,
     "settings.initialization", "sigma_w must be given"),
    ("axes that exclude each other", "sigma_u: [0.5, 1]",
     "initialization: [fluctuation, kaiming]\n  sigma_u:\n    - 1\n    - 2", 8,
     "search.sigma_u[1]", "got 2.0 with 'kaiming'"),
    ("option of some presets only", "randman\nsettings: {",
     "[shd-conv3, randman]\ndata: DATA\nsettings: {skip: true, ", 4, "settings.skip",
     "must be False for preset 'randman'"),
    ("unreachable target", "0.5, 1", "0.5, 1e-60", 5, "search.sigma_u[1]", "cannot be reached"),
    ("unreachable target, too large", "0.5, 1", "0.5, 1e+200", 5, "search.sigma_u[1]",
     "cannot be reached"),
    ("steps longer than a sample", "epochs: 4", "dt: 0.5", 3, "settings.dt",
     "must be at most the duration of 0.2 s"),
    ("unknown kernels", "epochs: 4", "backend: gpu", 3, "settings.backend", "must be one of cpu"),
    ("kernels of another device", "epochs: 4", "backend: cuda", 3, "settings.backend",
     "must be cpu or reference for trials with no GPU"),
    ("missing data", "randman", "shd-conv3", 2, "preset", "'shd-conv3' needs data"),
    ("missing data folder", "randman", "shd-conv3\ndata: nowhere", 3, "data", "no data folder at"),
    ("data of two kinds", "randman", "[shd-dense, cifar-conv2]\ndata: DATA", 2, "preset[1]",
     "must take the same data as 'shd-dense'"),
    ("negative gpus", "seeds: 2", "resources: {gpus: -1}", 7, "resources.gpus",
     "must be at least 0, got -1"),
    ("several GPUs for a trial", "seeds: 2", "resources: {gpus: 2}", 7, "resources.gpus",
     "must be at most 1, got 2"),
    ("memory without a unit that exists", "seeds: 2", "resources: {memory: 4 QB}", 7,
     "resources.memory", "such as 4 GB"),
    ("no time at all", "seeds: 2", "resources:\n  cpus: 1\n  hours: 0", 9, "resources.hours",
     "must be more than 0"),
    ("threads", "seeds: 2", "resources: {threads: 2}", 7, "resources.threads", "cpus"),
    ("scheduler by name alone", "seeds: 2", "scheduler: asha", 7, "scheduler", "must be none, or"),
    ("ASHA without grace", "seeds: 2", "scheduler: {asha: {}}", 7,
     "scheduler.asha.grace_epochs", "must be given"),
    ("ASHA with nothing to stop", "seeds: 2", "scheduler: {asha: {grace_epochs: 4}}", 7,
     "scheduler.asha.grace_epochs", "less than the epochs of the longest trial, 4, got 4"),
    ("name that is no folder", "name: small", "name: a/b", 1, "name", "must be of letters"),
    ("no mapping in a section", "seeds: 2", "report: 3", 7, "report", "must be a mapping, got 3"),
    ("number as a key", "sigma_u:", "3:", 5, "search", "keys must be words, got 3"),
    ("tag", "0.5, 1", "!!python/name:os.system x", 5, "search.sigma_u[0]", "must have no tag"),
    ("value that contains itself", "[0.5, 1]", "&again [*again]", 5, "search.sigma_u[0]",
     "must not contain itself"),
    ("no YAML", "[0.5, 1]", "[0.5, 1", 6, "", "is no YAML"),
    ("tab", "seeds: 2", "\tseeds: 2", 7, "", "is no YAML"),
    ("control character", "seeds: 2", "seeds: \x01", 7, "", "is no YAML: character 0x1"),
    ("two documents", "seeds: 2", "---\nseeds: 2", 7, "", "is no YAML: expected a single document"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "part"), [c[1:] for c in DAMAGED], ids=[c[0] for c in DAMAGED]
)
def test_a_mistake_is_told_by_line_and_key(tmp_path, old, new, line, key, part):
    text = RIGHT.replace(old, new, 1)
    assert text != RIGHT
    if "DATA" in text:
        text = text.replace("DATA", str(event_folder(tmp_path / "data")))
    with pytest.raises(SpecError) as raised:
        read(tmp_path, text)
    (message,) = str(raised.value).splitlines()
    where, _, what = message.partition(": ")
    assert where == f"{tmp_path / 'sweep.yaml'}:{line}"
    assert what.startswith(f"{key}: " if key else "is no YAML") and part in what


def test_the_file_before_the_damage_is_right(tmp_path):
    assert len(read(tmp_path, RIGHT).trials) == 12


EVERYTHING = """\
name: small
preset: [randman, shd-conv3]
settings:
  epochs: 0
  skip: true
  initialization: kaiming
  batchsize: 3
search:
  sigma_u:
    - 0.5
    - word
    - 1
  lr:
    uniform: [-2, -1]
  optimizer: [smorms3, rms]
seeds: [1, 1]
retries: -1
resources: {cpus: none}
"""


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path):
    with pytest.raises(SpecError) as raised:
        read(tmp_path, EVERYTHING)
    first, *lines = str(raised.value).splitlines()
    path = tmp_path / "sweep.yaml"
    assert first == f"{path} has 12 mistakes"
    assert [line.removeprefix(f"{path}:").split(": ")[:2] for line in lines] == [
        ["2", "preset[1]"],
        ["4", "settings.epochs"],
        ["5", "settings.skip"],
        ["7", "settings.batchsize"],
        ["10", "search.sigma_u[0]"],
        ["11", "search.sigma_u[1]"],
        ["13", "search.lr"],  # drawn, without samples
        ["14", "search.lr.uniform"],  # draws below 0
        ["15", "search.optimizer[1]"],
        ["16", "seeds[1]"],
        ["17", "retries"],
        ["18", "resources.cpus"],
    ]


def test_a_value_is_refused_once_however_many_combinations_have_it(tmp_path):
    text = RIGHT.replace("[0.5, 1]", "{uniform: [-1, 0]}") + "samples: 50\n"
    with pytest.raises(SpecError) as raised:
        read(tmp_path, text.replace("points: 3", "points: 20"))
    assert str(raised.value).count("sweep.yaml:5: search.sigma_u.uniform: must be finite") == 1
    assert len(str(raised.value).splitlines()) == 1


def test_what_cannot_be_read_raises_no_second_complaint(tmp_path):
    # sigma_w is missing because it is damaged.
    text = RIGHT.replace("epochs: 4", "initialization: normal, sigma_w: wide")
    with pytest.raises(SpecError) as raised:
        read(tmp_path, text.replace("  sigma_u: [0.5, 1]\n", ""))
    (message,) = str(raised.value).splitlines()
    assert "settings.sigma_w: must be a number, got 'wide'" in message


def test_files_that_are_no_sweeps_at_all(tmp_path):
    for content, message in (
        (b"", ":1: must be a mapping with keys such as preset and search, got nothing"),
        (b"- a\n- b\n", ":1: must be a mapping with keys such as preset and search, got ['a'"),
        (b"name: a\nnote: \xff\n", ":2: must be UTF-8 text, got byte 0xff"),
        (b"name: a\npreset: randman\n!x [1]: 3\n", ":3: keys must be words, got a list"),
    ):
        path = tmp_path / "sweep.yaml"
        path.write_bytes(content)
        with pytest.raises(SpecError) as raised:
            read_spec(path)
        assert str(raised.value).splitlines()[0].startswith(f"{path}{message}")
    with pytest.raises(FileNotFoundError):
        read_spec(Path("nowhere.yaml"))


def test_data_that_cannot_be_used_is_told(tmp_path):
    text = RIGHT.replace("randman", "shd-dense")
    folder = event_folder(tmp_path / "data")
    assert read(tmp_path, text, folder).data == folder
    assert read(tmp_path, f"{text}data: data\n").data == folder  # relative to the file
    assert read_spec(write(tmp_path, f"{text}data: data\n"), default_data=tmp_path).data == folder
    assert read_spec(write(tmp_path, f"{text}data: x\n"), data=folder).data == folder
    (folder / "test.h5").write_bytes(b"no HDF5")
    with pytest.raises(SpecError, match=r"sweep.yaml:8: data: must hold .*test.h5: not a readable"):
        read(tmp_path, f"{text}data: data\n")
    (folder / "test.h5").unlink()
    with pytest.raises(SpecError, match="holds no file that matches .test.*h5"):
        read(tmp_path, text, folder)


def test_what_no_preset_reads_is_not_looked_for(tmp_path):
    assert read(tmp_path, f"{RIGHT}data: nowhere\n").data is None
