"""What a newcomer meets first: the build without a compiler, the version, the README's examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import fastlif

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def project_version() -> str:
    (found,) = re.findall(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    return found


def test_without_a_compiler_the_build_ends_with_one_message(tmp_path):
    # pip provides these two for a build; here nothing is asked of them but to be there.
    (tmp_path / "ninja.py").write_text("BIN_DIR = ''\n")
    (tmp_path / "pybind11.py").write_text("def get_include(): return ''\n")
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("fastlif needs a C++17 compiler")
    assert "g++" in message and "CXX" in message
    assert not (tmp_path / "lib").exists() or not list((tmp_path / "lib").rglob("*.so"))


def test_the_changelog_begins_with_the_project_version():
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] in (project_version(), "Unreleased")
    assert project_version() in versions


def test_the_package_has_the_project_version():
    try:
        installed = version("fastlif")
    except PackageNotFoundError:
        pytest.skip("fastlif runs from a source tree that was not installed")
    assert fastlif.__version__ == installed == project_version()


def test_every_direct_dependency_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(
        r"^(?:requires|dependencies|train|test|bench|dev) = (\[.*\])$", project, re.M
    )
    assert len(lists) == 6
    names = {
        re.split(r"[\[>=<]", item)[0] for text in lists for item in re.findall('"(.*?)"', text)
    }
    pins = (ROOT / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==", pins, re.M))
    assert "torch" in pinned
    assert names - {"fastlif"} <= pinned


def test_the_readme_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:  # as a reader would, one after the other in one session
        exec(compile(block, str(README), "exec"), names)
    ours, loops = names["loss"], names["loop_loss"]
    assert isinstance(ours, torch.Tensor) and isinstance(loops, torch.Tensor)
    assert 0.01 < names["hidden_spikes"].mean().item() < 0.5
    # Two free runs in float32: single spikes may differ, the loss hardly.
    torch.testing.assert_close(ours, loops, rtol=1e-2, atol=0.0)
