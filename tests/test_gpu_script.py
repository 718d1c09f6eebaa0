"""Measuring on a GPU, without one: the script's parts and the rehearsal."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.check import CheckFailed
from bench.gpu import __main__ as gpu
from bench.gpu import packs, profile, run, sanitize
from bench.gpu.cases import GPU_CASES
from bench.gpu.check import check_stack
from bench.gpu.measure import Memory, Stopwatch, time_runs
from bench.gpu.report import KEPT
from bench.networks import pack_with_torch
from fastlif import PackedSpikes

ROOT = Path(__file__).resolve().parent.parent
ALL = ["build", "tests", "sanitize", "timings", "profile"]

# An interpreter that fails the parts in $FAIL, takes forever for those in $HANG, and is a real one
# for the summary.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    -c*) [[ -n $NO_GPU ]] || echo "Toy GPU|9.0"; exit 0 ;;
    "-m bench.gpu.summary"*) exec {python} "$@" ;;
    *build_ext*) part=build; echo "for ${{FASTLIF_CUDA_ARCHS:-none}}" ;;
    "-m pytest"*) part=tests; echo "3 passed in 0.1s" ;;
    "-m bench.gpu.sanitize"*) part=sanitize ;;
    "-m bench.gpu.profile"*) part=profile ;;
    "-m bench.gpu "*) part=timings ;;
esac
[[ $HANG == *"$part"* ]] && sleep 60
if [[ $FAIL == *"$part"* ]]; then echo "$part went wrong" >&2; exit 1; fi
if [[ $part == timings ]]; then
    while [[ $# -gt 0 && $1 != --json ]]; do shift; done
    echo '{{"results": []}}' >"$2"
fi
exit 0
"""
FAKE_SANITIZER = """#!/usr/bin/env bash
echo "sanitizer $*"
while [[ $# -gt 0 && $1 != --error-exitcode ]]; do shift; done
shift 2
"$@" || exit 9
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def script(tmp_path):
    """Run bench/gpu.sh with a toy interpreter: exit status, summary, and what it printed."""
    tools = tmp_path / "tools"
    tools.mkdir()
    executable(tools / "python", FAKE_PYTHON.format(python=sys.executable))
    executable(tools / "compute-sanitizer", FAKE_SANITIZER)
    executable(tools / "ncu", "#!/bin/sh\nexit 3\n")
    folder = tmp_path / "out"

    def run(*arguments: str, **variables: str) -> tuple[int, dict, str]:
        environment = {"FAIL": "", "HANG": "", "NO_GPU": ""} | variables
        environment |= {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", str(ROOT / "bench" / "gpu.sh"), *arguments, str(folder)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        path = folder / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        return done.returncode, summary, done.stdout + done.stderr

    run.folder = folder
    return run


def statuses(summary: dict) -> dict[str, str]:
    return {part["part"]: part["status"] for part in summary["parts"]}


def test_the_script_runs_all_parts(script):
    code, summary, printed = script()
    assert code == 0 and summary["passed"]
    assert statuses(summary) == dict.fromkeys(ALL, "passed")
    assert summary["timings"] == {"results": []}
    assert {"device", "driver", "versions", "commit", "clocks", "nvcc"} <= summary.keys()
    assert summary["versions"]["torch"] == torch.__version__
    logs = {part["part"]: (script.folder / part["log"]).read_text() for part in summary["parts"]}
    assert "for 90" in logs["build"]
    assert [tool in logs["sanitize"] for tool in ("memcheck", "racecheck", "synccheck")]
    notes = {part["part"]: part["note"] for part in summary["parts"]}
    assert "3 passed" in notes["tests"] and "racecheck: clean" in notes["sanitize"]
    assert "ncu gave nothing" in notes["profile"]
    assert "summary.json" in printed


def test_a_failing_part_does_not_stop_the_next(script):
    code, summary, printed = script(FAIL="build sanitize")
    assert code == 1 and not summary["passed"]
    expected = {"build": "failed", "sanitize": "failed"}
    assert statuses(summary) == dict.fromkeys(ALL, "passed") | expected
    assert "build went wrong" in printed
    assert "memcheck: errors" in summary["parts"][2]["note"]


def test_a_part_that_hangs_is_ended_and_the_rest_is_out_of_time(script):
    code, summary, _ = script("--seconds", "4", "--parts", "build,tests", HANG="build")
    assert code == 1
    assert statuses(summary) == {"build": "timed out", "tests": "skipped"}


def test_parts_can_be_chosen(script):
    code, summary, _ = script("--parts", "timings")
    assert code == 0 and statuses(summary) == {"timings": "passed"}


def test_without_a_gpu_the_script_says_so(script):
    code, summary, printed = script(NO_GPU="1")
    assert code == 1 and "no GPU" in printed
    assert statuses(summary) == dict.fromkeys(ALL, "failed")
    assert not summary["passed"] and summary["timings"] is None


@pytest.mark.parametrize("wrong", [["--parts", "build,tea"], ["--seconds", "soon"], ["--fast"]])
def test_the_script_refuses_what_it_does_not_know(script, wrong):
    code, summary, _ = script(*wrong)
    assert code == 2 and not summary


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [gpu, profile, sanitize])
def test_without_a_gpu_nothing_is_timed(module, capsys):
    assert module.main([]) == 1
    printed = capsys.readouterr()
    assert "no GPU" in printed.err and not printed.out


# ---- the rehearsal: the same code on the CPU kernels


@pytest.fixture
def in_this_process(monkeypatch):
    """Cases run here instead of in a process of their own."""

    class Here:
        def run(self, function, *arguments, limit):
            try:
                return function(*arguments)
            except Exception as error:
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

        def close(self):
            pass

    monkeypatch.setattr(gpu, "Worker", Here)


QUICK = ["--device", "cpu", "--quick", "--repeats", "2"]


def test_a_rehearsal_writes_all_numbers(in_this_process, tmp_path, capsys):
    path = tmp_path / "timings.json"
    names = ["dense-recurrent", "scan", "recurrent-1024"]
    assert gpu.main([*names, *QUICK, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["rehearsal"] is True and content["skipped"] == []
    assert {"name", "driver", "cuda", "torch", "triton", "commit"} <= content["machine"].keys()
    results = {(r["case"], r["variant"]): r for r in content["results"]}
    assert set(results) == {
        ("dense-recurrent", "cpu"), ("dense-recurrent", "loop"), ("scan", "cpu"),
        ("recurrent-1024", "cpu"),
    }  # fmt: skip
    step = results["dense-recurrent", "cpu"]
    assert step["check"]["wrong_spikes"] == 0 and step["check"]["bitwise_as_cpu"] is True
    assert step["check"]["batch_matches_samples"] is True
    assert set(step["times"]) == {"forward", "backward", "optimizer", "step"}
    assert all(0 < t["smallest"] <= t["median"] <= t["largest"] for t in step["times"].values())
    assert 2.125 <= step["numbers"][KEPT] < 3.5 and step["floors"]["step"] > 0
    assert any("stack_backward" in kernel["name"] for kernel in step["kernels"])
    assert results["recurrent-1024", "cpu"]["floors"]["per step"] > 0
    assert "forward operation, share of copy" in results["scan", "cpu"]["numbers"]
    printed = capsys.readouterr().out
    assert "these times mean nothing" in printed and "the plain loop takes" in printed


def test_a_rehearsal_of_networks_side_by_side(in_this_process, tmp_path):
    path = tmp_path / "timings.json"
    assert gpu.main(["randman-32-pack", *QUICK, "--json", str(path)]) == 0
    (result,) = json.loads(path.read_text())["results"]  # the plain loop has no packs
    assert set(result["times"]) == {"step", "step of one"}
    ratio = result["times"]["step"]["median"] / result["times"]["step of one"]["median"]
    assert result["numbers"]["step, times one"] == ratio and result["limits"] == {}


def test_networks_that_are_not_what_they_are_alone_are_not_timed(
    in_this_process, monkeypatch, capsys
):
    original = packs.PackTrainer._forward

    def off(self, input):
        scores, counts = original(self, input)
        change = torch.zeros_like(scores)
        change[-1, -1] = 1e-5
        return scores + change, counts

    monkeypatch.setattr(packs.PackTrainer, "_forward", off)
    assert gpu.main(["randman-32-pack", *QUICK]) == 1
    assert "network 2 of 3 is not timed: not the bits" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(in_this_process, monkeypatch, tmp_path, capsys):
    def fails(*arguments, **options):
        raise CheckFailed("a gradient is wrong")

    monkeypatch.setattr(run, "check_stack", fails)
    path = tmp_path / "timings.json"
    assert gpu.main(["scan", *QUICK, "--json", str(path)]) == 1
    content = json.loads(path.read_text())
    assert content["results"] == [] and content["skipped"][0]["failed"]
    printed = capsys.readouterr().out
    assert "FAILED: scan cpu: CheckFailed: a gradient is wrong" in printed
    assert "scan  cpu  forward" not in printed


def test_a_missing_backend_fails_and_the_next_goes_on(in_this_process, capsys):
    code = gpu.main(["scan", *QUICK, "--variants", "cuda,cpu"])
    printed = capsys.readouterr().out
    assert code == 1 and "FAILED: scan cuda: ValueError" in printed
    assert "scan cpu: checked and timed" in printed


def test_out_of_time_is_said(in_this_process, capsys):
    assert gpu.main(["scan", *QUICK, "--budget", "0"]) == 0
    assert "skipped: scan cpu: no time left" in capsys.readouterr().out


def test_a_process_that_dies_is_replaced():
    worker = gpu.Worker()
    try:
        with pytest.raises(RuntimeError, match="its process died"):
            worker.run(os._exit, 3, limit=60.0)
        assert worker.run(len, "abc", limit=60.0) == 3
    finally:
        worker.close()


@pytest.mark.parametrize("arguments", [["tea"], ["--repeats", "0"], ["--variants", "tea"]])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        gpu.main([*arguments, "--device", "cpu"])


@pytest.mark.parametrize("packed", [True, False])
def test_the_check_notices(monkeypatch, packed):
    case = GPU_CASES["recurrent-1024"].quick()
    stack = case.stack(batch=3, n_steps=40)
    if packed:
        stack = sanitize.cases()[1][1]
    options = {"backend": None, "device": torch.device("cpu"), "packed": packed}
    found = check_stack(stack, **options)
    assert found.wrong_spikes == 0 and found.lowest_firing > 0.002
    original = run.stack

    def off(input, plans, tensors, **given):
        changed = [dataclasses.replace(plan, decay_syn=plan.decay_syn + 1e-4) for plan in plans]
        return original(input, changed, tensors, **given)

    monkeypatch.setattr("bench.gpu.check.stack", off)
    with pytest.raises(CheckFailed, match="not timed"):
        check_stack(stack, **options)


def test_the_sanitizer_driver_runs_every_case(capsys):
    assert sanitize.main(["--device", "cpu", "--backend", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sanitize.cases()) + 1
    assert lines[-1].startswith("losses and SMORMS3, compiled kernels")


def test_a_profile_of_the_worst_case(tmp_path, capsys):
    path = tmp_path / "timings.json"
    assert profile.worst_case(path) == ("shd-conv3", "cuda")

    def result(case, variant, seconds, goal):
        return {
            "case": case, "variant": variant, "goals": {"step": goal}, "floors": {},
            "times": {"step": {"median": seconds}},
        }  # fmt: skip

    results = [
        result("shd-conv3", "cuda", 2.0, 1.0),
        result("dense-recurrent", "triton", 1.2, 0.5),
        result("dense-recurrent", "loop", 99.0, 0.5),
    ]
    path.write_text(json.dumps({"results": results}))
    assert profile.worst_case(path) == ("dense-recurrent", "triton")
    arguments = ["--case", "dense-recurrent", "--variant", "cpu", "--device", "cpu", "--quick"]
    assert profile.main(arguments) == 0
    assert "fastlif::stack_backward" in capsys.readouterr().out
    assert profile.main([*arguments, "--bare"]) == 0


def test_packing_without_kernels():
    spikes = torch.rand(70, 3, 4, 5) < 0.2
    assert torch.equal(PackedSpikes.pack(spikes.float()).words, pack_with_torch(spikes).words)


def test_a_stopwatch_has_one_time_less_than_marks():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        watch.mark()
    assert len(watch.seconds()) == 2
    calls = []
    times = time_runs(
        lambda: calls.append("run"), torch.device("cpu"), 4, before=lambda: calls.append("before")
    )
    assert len(times) == 4 and calls[:2] == ["before", "run"] and calls.count("run") > 4
    assert Memory(1, 2).peak == 2
