"""Folders with one writer, and the commit that results name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastlif import versions
from fastlif.files import held_by_this_process


def test_a_folder_is_held_against_other_processes_until_they_die(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fastlif.files import *;"
        "holder = held_by_this_process(Path(sys.argv[1])); holder.__enter__();"
        "print('held', flush=True); time.sleep(600)"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=r"in use by another process \(it holds .*\.lock"):
                with held_by_this_process(folder):
                    pass
        finally:
            other.kill()
    with held_by_this_process(folder):  # what was killed holds nothing
        with pytest.raises(ValueError, match="in use"):
            with held_by_this_process(folder):
                pass
    with held_by_this_process(folder):
        pass


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", *names, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "elsewhere"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(name)
        git(folder, "init", "--quiet")
        git(folder, "add", "file")
        git(folder, "commit", "--quiet", "--message", name)
    here = tmp_path / "here"
    commit = git(here, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    found = versions.described(here)
    assert found is not None and commit.startswith(found)
    (here / "file").write_text("changed")
    assert versions.described(here) == f"{found}-dirty"
    (here / "inner").mkdir()
    assert versions.described(here / "inner") is None
    assert versions.described(tmp_path) is None


def test_the_commit_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "described", lambda root: None)
    monkeypatch.setenv("FASTLIF_COMMIT", "abc")
    assert versions.commit.__wrapped__() == "abc"
    monkeypatch.delenv("FASTLIF_COMMIT")
    assert versions.commit.__wrapped__() is None
