"""Comparing commits: the interval, worktrees that always go, building, and a slower tree."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bench.compare
from bench.__main__ import main
from bench.compare import Ratio, interval_rank, time_in_turn
from bench.machine import ROOT
from bench.trees import CannotCompare, build_extension, worktree
from fastlif import extension

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


BUILD_WITHOUT_END = """
import os, time
with open("process", "w") as file:
    file.write(str(os.getpid()))
os.rename("process", "../process")
time.sleep(600)
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path) -> Path:
    """A small tree with a compiled source and a set-up that 'builds' it, one commit."""
    root = tmp_path / "root"
    (root / "csrc").mkdir(parents=True)
    (root / "fastlif").mkdir()
    (root / "csrc" / "a.cpp").write_text("1")
    (root / "cuda_build.py").write_text("")
    (root / ".gitignore").write_text("*.so\n")
    (root / "fastlif" / "__init__.py").write_text("")
    build = "open('fastlif/_C.so', 'w').write(open('csrc/a.cpp').read() + ' built')"
    (root / "setup.py").write_text(build)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    (root / "fastlif" / "_C.so").write_text("compiled before")
    return root


def n_worktrees(root: Path) -> int:
    return len(git(root, "worktree", "list").splitlines())


@pytest.mark.parametrize(("n", "outside"), [(6, 0), (8, 0), (9, 1), (15, 3), (20, 5)])
def test_the_interval_has_the_median_often_enough_and_is_no_wider(n, outside):
    def coverage(outside: int) -> float:
        return 1 - 2 * sum(math.comb(n, k) for k in range(outside + 1)) / 2**n

    assert interval_rank(n) == outside
    assert coverage(outside) >= 0.95 > coverage(outside + 1)


def test_few_pairs_have_no_interval():
    with pytest.raises(ValueError, match="5 pairs"):
        interval_rank(5)


def test_a_regression_is_what_lies_beyond_noise_and_threshold():
    theirs = [1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    factors = [1.10, 1.08, 1.12, 1.09, 1.11, 1.10, 1.10, 0.9, 1.5]
    slower = Ratio.of([a * b for a, b in zip(factors, theirs, strict=True)], theirs)
    assert slower.median == pytest.approx(1.10)
    assert slower.low == pytest.approx(1.08) and slower.high == pytest.approx(1.12)
    assert slower.is_regression(0.02) and not slower.is_regression(0.09)
    noisy = Ratio.of([1.3, 0.9, 1.2, 0.8, 1.3, 1.2, 1.3, 1.0, 1.4], [1.0] * 9)
    assert noisy.median == 1.2 and not noisy.is_regression(0.0)


def test_trees_take_turns_and_the_first_one_changes():
    order = []

    def side(name: str, seconds: float):
        return lambda: order.append(name) or seconds

    ours, theirs = time_in_turn(side("ours", 1.0), side("theirs", 2.0), 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert ours == [1.0] * 3 and theirs == [2.0] * 3


def test_a_worktree_has_the_commit_and_is_gone_afterwards(repository):
    (repository / "csrc" / "a.cpp").write_text("changed, not committed")
    with worktree(repository, "HEAD") as tree:
        assert (tree / "csrc" / "a.cpp").read_text() == "1" and n_worktrees(repository) == 2
    assert not tree.parent.exists() and n_worktrees(repository) == 1
    with pytest.raises(RuntimeError, match="inside"), worktree(repository, "HEAD") as tree:
        raise RuntimeError("inside")
    assert not tree.parent.exists() and n_worktrees(repository) == 1
    with pytest.raises(CannotCompare, match="no-such-ref"), worktree(repository, "no-such-ref"):
        pass
    with pytest.raises(CannotCompare), worktree(repository, "--detach"):
        pass
    assert n_worktrees(repository) == 1


def test_a_terminated_comparison_leaves_no_worktree(repository):
    """In the midst of a build that does not end by itself."""
    (repository / "setup.py").write_text(BUILD_WITHOUT_END)
    git(repository, "commit", "-qam", "slow to build")
    (repository / "csrc" / "a.cpp").write_text("another")
    os.utime(repository / "fastlif" / "_C.so", (2e9, 2e9))
    script = (
        "import sys, pathlib, bench.trees as c\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "with c.worktree(root, 'HEAD') as tree:\n"
        "    print(tree, flush=True)\n"
        "    c.build_extension(root, tree)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(repository)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    tree = Path(process.stdout.readline().strip())
    note = tree.parent / "process"
    end = time.monotonic() + 60
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.05)
    building = int(note.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stdout.close()
    assert not tree.parent.exists() and n_worktrees(repository) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(building, 0)


def test_the_extension_is_copied_where_no_source_differs_and_built_where_one_does(repository):
    compiled = repository / "fastlif" / "_C.so"
    with worktree(repository, "HEAD") as tree:
        build_extension(repository, tree)
        assert (tree / "fastlif" / "_C.so").read_text() == "compiled before"
    for name, there in (("a.cpp", "1"), ("new.cpp", None)):
        changed = repository / "csrc" / name
        changed.write_text("2")
        os.utime(compiled, (2e9, 2e9))
        with worktree(repository, "HEAD") as tree:
            build_extension(repository, tree)
            assert (tree / "fastlif" / "_C.so").read_text() == "1 built"
        if there is not None:
            changed.write_text(there)


def test_what_cannot_be_built_is_said(repository):
    with worktree(repository, "HEAD") as tree:
        os.utime(repository / "fastlif" / "_C.so", (1e9, 1e9))
        with pytest.raises(CannotCompare, match="older than csrc/a.cpp"):
            build_extension(repository, tree)
        (repository / "fastlif" / "_C.so").unlink()
        with pytest.raises(CannotCompare, match="no compiled _C"):
            build_extension(repository, tree)
    (repository / "setup.py").write_text("raise SystemExit('no compiler here')")
    git(repository, "commit", "-qam", "does not build")
    (repository / "csrc" / "a.cpp").write_text("3")
    (repository / "fastlif" / "_C.so").write_text("")
    os.utime(repository / "fastlif" / "_C.so", (2e9, 2e9))
    with (
        worktree(repository, "HEAD") as tree,
        pytest.raises(CannotCompare, match="no compiler here"),
    ):
        build_extension(repository, tree)


@pytest.fixture
def library(tmp_path) -> Path:
    """This library in a repository of its own, with the compiled extension."""
    root = tmp_path / "library"
    for name in ("fastlif", "csrc"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "cuda_build.py", ".gitignore"):
        shutil.copy2(ROOT / name, root)
    for compiled in (root / "fastlif").glob("_C*.so"):
        os.utime(compiled)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "library")
    return root


@pytest.mark.skipif(not extension.is_available(), reason="needs the compiled extension")
def test_a_slower_tree_is_found(library, monkeypatch, capsys):
    monkeypatch.setattr(bench.compare, "ROOT", library)
    losses = library / "fastlif" / "losses.py"
    before = losses.read_text()
    losses.write_text(f"{before}\nimport time\n_bound = upper_bound\n")
    with losses.open("a") as file:
        file.write("def upper_bound(*a):\n    time.sleep(0.3)\n    return _bound(*a)\n")
    threads = torch.get_num_threads()
    command = ["compare", "HEAD", "randman", "--quick", "--repeats", "6", "--threads", "1"]
    try:
        assert main([*command, "--threshold", "0.5"]) == 1
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert "randman" in printed.out and "SLOWER" in printed.out
    assert "beyond noise: randman" in printed.err
    assert n_worktrees(library) == 1


def test_the_exit_status_tells_regressions_from_trouble(monkeypatch, capsys):
    found: list[str] = []
    monkeypatch.setattr(bench.compare, "compare", lambda *given, **options: found)
    threads = torch.get_num_threads()
    command = ["compare", "HEAD", "--threads", str(threads)]
    assert main(command) == 0
    found.append("randman")
    assert main(command) == 1
    monkeypatch.undo()
    assert main(["compare", "no-such-ref", "--threads", str(threads)]) == 2
    assert "no-such-ref" in capsys.readouterr().err
    for wrong in (["--repeats", "5"], ["--threshold", "-1"], ["conv-99"]):
        with pytest.raises(SystemExit):
            main(["compare", "HEAD", *wrong])
