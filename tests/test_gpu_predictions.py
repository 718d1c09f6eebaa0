"""What a GPU's timings are compared with: floors, predictions, goals, and how they are shown."""

from __future__ import annotations

import pytest

from bench.cases import CASES
from bench.floors import Peak, Work
from bench.gpu import __main__ as gpu
from bench.gpu import model, report, run
from bench.gpu.cases import GPU_CASES, PackCase, StepCase
from bench.gpu.model import H100, Estimate, predict_step, scan_backward, scan_forward
from bench.gpu.report import KEPT, Skipped, misses, table
from bench.gpu.run import GpuResult
from bench.measure import Spread


def test_dense_products_have_a_peak_of_their_own():
    work = Work(deliveries=10, dense=20, neurons=30, bytes=50)
    assert work.seconds(Peak(multiply_adds=4, bytes=50, dense_multiply_adds=20)) == 11
    assert work.seconds(Peak(multiply_adds=6, bytes=50)) == 10


def test_the_scan_is_predicted_from_its_bytes():
    work = 350 * 400 * 1088
    assert scan_forward(work).seconds == pytest.approx(work * 6.125 / 3.0e12 + 2e-6)
    assert scan_backward(work).seconds == pytest.approx(work * 10.125 / 3.0e12 + 2e-6)
    assert scan_forward(work).limit == "memory"


def test_predictions_of_the_recurrent_networks():
    """Counts that were also made by hand; the last digit of a time is of no concern."""
    plans, densities = GPU_CASES["shd-conv3"].plans(), [0.024, 0.02, 0.02, 0.02]
    links = model.synapses_of(plans, densities)
    sizes = [s.all for layer in links for s in layer]
    assert sizes == [22848, 87040, 75264, 107520, 71680, 102400, 6400]
    exact = {e.kernel: e for e in predict_step(plans, densities, 400, 350)}
    fast = {e.kernel: e for e in predict_step(plans, densities, 400, 350, tf32=True)}
    dense = sum(sizes[1:]) * 400 * 350
    assert exact["stack_backward"].terms["arithmetic"] == pytest.approx(dense / 33.5e12)
    neuron_bytes = 400 * 350 * (2080 * 6.125 + 20 * 4)
    memory = exact["stack_backward"].terms["memory"]
    assert memory == pytest.approx(neuron_bytes / 3.0e12)
    assert exact["stack_backward"].limit == "issue"
    assert fast["stack_backward"].seconds < exact["stack_backward"].seconds / 2
    assert exact["stack_forward"].seconds == fast["stack_forward"].seconds
    assert set(exact) == {
        "words_to_masks", "stack_forward", "stack_backward", "weight_gradient", "small kernels",
    }  # fmt: skip


def test_more_samples_than_multiprocessors_come_in_rounds():
    plans, densities = GPU_CASES["dense-recurrent"].plans(), [0.024, 0.02]

    def issue(batch: int) -> float:
        links = model.synapses_of(plans, densities)
        return model.stack_forward(plans, links, 700, batch, 350).terms["issue"]

    assert issue(1) == issue(132) and issue(133) == pytest.approx(2 * issue(132))


def test_weights_of_a_wide_layer_come_from_the_second_level_cache():
    case = GPU_CASES["recurrent-1024"]
    backward = case.predictions(0.02, "cuda", False)["backward"]
    assert backward[0].kernel == "stack_backward" and backward[0].limit == "L2"
    size = 4 * 1024 * 1024
    missing = 1 - model.WEIGHT_CACHE / size
    assert backward[0].terms["L2"] == pytest.approx(128 * 175 * size * missing / H100.l2)
    pairs = case.predictions(0.02, "triton", False)["backward"][0]
    assert pairs.seconds == pytest.approx(175 * (256 * 1024**2 / 33.5e12 + 2 * 2e-6))


def test_an_estimate_is_its_largest_term_and_its_launches():
    estimate = Estimate("k", {"memory": 3.0, "issue": 4.0}, launches=2, launch=0.5)
    assert (estimate.seconds, estimate.limit) == (5.0, "issue")
    assert Estimate("k", {}, launches=3, launch=1.0).seconds == 3.0


def toy_result(case: str, variant: str, seconds: float, **more) -> GpuResult:
    spread = Spread(seconds, seconds / 2, 2 * seconds)
    return GpuResult(case, variant, "", {}, [0.02], {"step": spread}, **more)


def test_the_table_names_floor_prediction_goal_and_measurement():
    entries = [
        toy_result("a", "cuda", 2e-3, goals={"step": 1e-3}, floors={"step": 5e-4},
                   predictions={"step": 7e-4}, numbers={KEPT: 2.15}),
        toy_result("a", "triton", 3e-3, goals={"step": 1e-3}, numbers={"share": 0.8}),
        toy_result("a", "loop", 50e-3),
        Skipped("b", "cuda", "not built", True),
    ]  # fmt: skip
    lines = table(entries).splitlines()
    first = lines[1].split("  ")
    cells = [cell.strip() for cell in first if cell.strip()]
    assert cells == ["a", "cuda", "step", "0.5 ms", "0.7 ms", "1 ms", "2 ms", "1 ms - 4 ms"]
    assert any(line.startswith("a: the plain loop takes 25.0 times") for line in lines)
    assert lines[-1] == "FAILED: b cuda: not built"
    assert misses(entries) == ["a, step: 0.002, goal 0.001"]


def test_a_share_misses_its_goal_when_it_is_lower():
    low, high = (
        toy_result("scan", name, 1.0, goals={"share": 0.9}, numbers={"share": share})
        for name, share in (("cuda", 0.85), ("triton", 0.92))
    )
    assert misses([low]) == ["scan, share: 0.85, goal 0.9"]
    assert misses([low, high]) == []


def test_a_ratio_misses_its_limit_when_it_is_higher():
    low, high = (
        toy_result("pack", name, 1.0, limits={"ratio": 1.3}, numbers={"ratio": ratio})
        for name, ratio in (("cuda", 1.2), ("triton", 14.0))
    )
    assert misses([high]) == ["pack, ratio: 14, goal 1.3"]
    assert misses([high, low]) == []


def test_kernels_are_shown_with_their_prediction():
    result = toy_result("a", "cuda", 1e-3)
    result.kernels = [{"name": "void stack_forward_kernel<float>", "calls": 1, "seconds": 1e-3}]
    estimate = Estimate("stack_forward", {"issue": 2e-3}, launch=0.0)
    result.predicted_kernels = run._described([estimate])
    assert "predicted 2 ms (issue)" in report.kernel_table(result)


def test_the_goals_are_those_that_were_set():
    packs = {name: case for name, case in GPU_CASES.items() if isinstance(case, PackCase)}
    others = {name: case.goal for name, case in GPU_CASES.items() if name not in packs}
    assert {name: goal for name, goal in others.items() if goal is not None} == {
        "shd-conv3": 2.5e-3, "dense-recurrent": 0.5e-3, "scan": 0.9, "recurrent-1024": 2.5e-6,
    }  # fmt: skip
    assert {name: case.goal_ratio for name, case in packs.items()} == {
        "randman-pack": 1.3, "randman-32-pack": 1.3,
    }  # fmt: skip
    for name in CASES.keys() & GPU_CASES.keys():
        case = GPU_CASES[name]
        assert isinstance(case, StepCase) and case.case.batch == CASES[name].batch


def test_predictions_need_no_gpu(capsys):
    assert gpu.main(["--predict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.rsplit(":", 1)[0] for line in lines if not line.startswith(" ")]
    assert any(line.startswith("shd-conv3 cuda TF32: ") for line in lines)
    assert any(head.startswith("recurrent-1024 triton float32") for head in heads)
    assert not any(head.startswith("cifar") for head in heads)
