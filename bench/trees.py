"""Another commit in a temporary worktree, with its extension."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

BUILT_FROM = ("csrc", "setup.py", "cuda_build.py")


class CannotCompare(Exception):
    """Something about the two trees that the user can mend."""


def git(root: Path, *arguments: str) -> str:
    """Output of a git command; CannotCompare with what git says when it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise CannotCompare(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def worktree(root: Path, ref: str) -> Iterator[Path]:
    """REF in a temporary folder, which is gone afterwards, also after an error or SIGTERM."""
    commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    with _terminations_raised():
        folder = Path(tempfile.mkdtemp(prefix="fastlif-compare-"))
        tree = folder / "tree"
        try:
            git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
            yield tree
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            git(root, "worktree", "prune")


@contextmanager
def _terminations_raised() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that what has to be cleaned up is."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def extension_of(root: Path) -> Path:
    """This tree's compiled module; CannotCompare where it is missing or older than a source."""
    build = "build it first: python setup.py build_ext --inplace"
    found = sorted((root / "fastlif").glob("_C*.so"))
    if not found:
        raise CannotCompare(f"{root / 'fastlif'} has no compiled _C: {build}")
    sources = [path for name in BUILT_FROM for path in _files(root / name)]
    newer = [path for path in sources if path.stat().st_mtime > found[0].stat().st_mtime]
    if newer:
        raise CannotCompare(f"{found[0].name} is older than {newer[0].relative_to(root)}: {build}")
    return found[0]


def _files(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def build_extension(root: Path, tree: Path) -> None:
    """Put fastlif._C into a worktree: a copy of ours where no source differs, else a build."""
    ours = extension_of(root)
    if not _sources_differ(root, tree):
        shutil.copy2(ours, tree / "fastlif")
        return
    print("building the extension of the other commit", flush=True)
    process = subprocess.Popen(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "FASTLIF_CUDA": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its compilers can be ended with it
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        lines = output.strip().splitlines()[-20:]
        raise CannotCompare("\n".join(["the other commit does not build:", *lines]))


def _sources_differ(root: Path, tree: Path) -> bool:
    """Whether a compiled source of `root`, as it is on disk, is not that of `tree`."""
    for name in BUILT_FROM:
        ours, theirs = _files(root / name), _files(tree / name)
        names = [
            {p.relative_to(top) for p in files} for top, files in ((root, ours), (tree, theirs))
        ]
        if names[0] != names[1]:
            return True
        if any(path.read_bytes() != (tree / path.relative_to(root)).read_bytes() for path in ours):
            return True
    return False
