"""The emulation of CUDA on the CPU: it finds planted mistakes, and right kernels pass."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from cuda_build import ROOT
from tests.emulation import build, order_of_threads

SOURCE = ROOT / "tests" / "emulation_samples.cu"
NUMBERS = np.arange(2 * 96, dtype=np.int32)  # two blocks of three warps
SHIFTED = np.roll(NUMBERS.reshape(2, 96), -7, axis=1).reshape(-1)
SEEDS = range(4)
MISTAKES = (
    "none",
    "no_barrier_before_read",
    "no_barrier_before_write",
    "barrier_in_a_branch",
    "two_barriers_for_one",
    "lane_leaves_before_barrier",
    "lane_leaves_before_ballot",
    "partial_mask",
    "write_past_the_end",
    "write_before_the_start",
    "write_far_past_the_end",
    "read_past_the_end",
    "read_unwritten",
    "blocks_share_a_word",
    "no_warp_barrier",
)


class Samples:
    """The kernels of emulation_samples.cu, on numpy arrays."""

    def __init__(self, name: str, find_races: bool) -> None:
        self.library = ctypes.CDLL(str(build(name, [SOURCE], [], find_races)))

    def run(self, name: str, *arguments: Any) -> None:
        """Launch a kernel; RuntimeError with the emulation's message when it is wrong."""
        function = getattr(self.library, f"run_{name}")
        function.restype = ctypes.c_char_p
        message = function(
            *(
                ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else value
                for value in arguments
            )
        )
        if message:
            raise RuntimeError(message.decode())

    def shift(self, mistake: str, seed: int = 0) -> Any:
        """NUMBERS, seven places on within each block, if there is no mistake."""
        out = np.zeros_like(NUMBERS)
        with order_of_threads(self.library, seed):
            self.run("shift", MISTAKES.index(mistake), NUMBERS, out, NUMBERS.size, 7)
        return out

    def shift_in_warp(self, mistake: str, seed: int = 0) -> Any:
        """The first 64 of NUMBERS, one place on within each warp."""
        out = np.zeros_like(NUMBERS[:64])
        with order_of_threads(self.library, seed):
            self.run("shift_in_warp", MISTAKES.index(mistake), NUMBERS, out, out.size)
        return out

    def sum(self, numbers: Any, seed: int = 0) -> tuple[int, bool]:
        """The sum, and whether a number is negative."""
        total, any_negative = np.zeros(1, np.int32), np.zeros(1, np.int32)
        with order_of_threads(self.library, seed):
            self.run("sum", numbers, numbers.size, total, any_negative)
        return int(total[0]), bool(any_negative[0])

    def convert(self, numbers: Any) -> tuple[Any, Any, Any]:
        """What half precision makes of the numbers, its bits, and what tf32 makes of them."""
        results = (
            np.zeros_like(numbers),
            np.zeros(numbers.size, np.uint16),
            np.zeros_like(numbers),
        )
        self.run("convert", numbers, numbers.size, *results)
        return results


@pytest.fixture(scope="module")
def plain() -> Samples:
    return Samples("_samples_emulated", find_races=False)


@pytest.fixture(scope="module")
def racing() -> Samples:
    return Samples("_samples_emulated_races", find_races=True)


@pytest.fixture(params=["plain", "racing"])
def samples(request: pytest.FixtureRequest) -> Samples:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_right_kernel_passes_in_any_order(samples, seed):
    np.testing.assert_array_equal(samples.shift("none", seed), SHIFTED)
    in_warp = np.roll(NUMBERS[:64].reshape(2, 32), -1, axis=1).reshape(-1)
    np.testing.assert_array_equal(samples.shift_in_warp("none", seed), in_warp)
    assert samples.sum(NUMBERS, seed) == (NUMBERS.sum(), False)
    assert samples.sum(-NUMBERS[:70], seed) == (-NUMBERS[:70].sum(), True)


# What is wrong whatever the order, and the words that say where.
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "barrier_in_a_branch",
            "waits at __syncthreads .*while its block|what no thread|since their last",
        ),
        ("two_barriers_for_one", r"waits at __syncthreads \(.*samples.cu:\d+\) while its block"),
        ("lane_leaves_before_barrier", r"thread \(40, 0, 0\) has exited while its block waits"),
        (
            "lane_leaves_before_ballot",
            r"thread \(40, 0, 0\) has exited while its warp waits at __b",
        ),
        ("partial_mask", "__ballot_sync without all 32 lanes"),
        ("write_past_the_end", "shared memory"),
        ("write_before_the_start", "shared memory"),
        ("write_far_past_the_end", "shared memory"),
    ],
)
def test_a_broken_rule_is_an_error_that_names_the_place(samples, mistake, message):
    with pytest.raises(RuntimeError, match=message) as error:
        samples.shift(mistake)
    assert str(error.value).startswith("kernel shift of 192 numbers, block (0, 0, 0): ")
    # The next launch starts afresh.
    np.testing.assert_array_equal(samples.shift("none"), SHIFTED)


@pytest.mark.parametrize("mistake", ["no_barrier_before_read", "no_barrier_before_write"])
def test_a_missing_barrier_changes_the_result_of_some_order(plain, mistake):
    wrong = [not np.array_equal(plain.shift(mistake, seed), SHIFTED) for seed in SEEDS]
    assert sum(wrong) >= 3


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no_barrier_before_read", "(reads|writes over) .*thread .* of this block|what no thread"),
        ("no_barrier_before_write", "(reads|writes over) .*thread .* of this block (wrote|read)"),
        (
            "blocks_share_a_word",
            "writes over global memory, which thread .* of another block wrote",
        ),
        ("read_unwritten", "reads what no thread has written: byte (0|4|8|12) of shared memory"),
        ("read_past_the_end", "reads outside of shared memory: byte 384"),
        ("write_past_the_end", r"thread \(5, 0, 0\) writes outside of shared memory: byte 384"),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_race_check_finds_the_mistake_in_any_order(racing, mistake, message, seed):
    with pytest.raises(RuntimeError, match=message):
        racing.shift(mistake, seed)
    np.testing.assert_array_equal(racing.shift("none", seed), SHIFTED)


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_a_warp_race_as_well(racing, seed):
    with pytest.raises(RuntimeError, match="(reads|writes).*shared memory"):
        racing.shift_in_warp("no_warp_barrier", seed)


def test_tensor_core_fragments_give_the_matrix_product(samples):
    random = np.random.default_rng(0)
    # Multiples of 1/64 below 8: tf32 holds them, and float32 their sums of products.
    a, b = (random.integers(-512, 512, size=(n, 8)).astype(np.float32) / 64 for n in (16, 8))
    product = np.zeros((16, 8), np.float32)
    samples.run("multiply", a, b, product)
    np.testing.assert_array_equal(product, a @ b)


def test_halves_saturate_and_round_as_numpy_does(plain):
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, size=1 << 14, dtype=np.uint32).view(np.float32)
    near_half = random.normal(size=1 << 14).astype(np.float32) * np.float32(10.0) ** (
        random.integers(-8, 5, size=1 << 14).astype(np.float32)
    )
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, -1e9, 2**-24, 2**-25])
    numbers = np.concatenate([patterns, near_half, np.resize(special, 32)])
    halves, bits, _ = plain.convert(numbers)
    with np.errstate(over="ignore"):
        expected = np.clip(numbers, -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(halves, expected.astype(np.float32))
    finite = ~np.isnan(numbers)
    np.testing.assert_array_equal(bits[finite], expected.view(np.uint16)[finite])


def test_tf32_keeps_ten_bits_rounded_away_from_zero(plain):
    unit = np.float32(2**-10)
    numbers = np.float32([1, 1 + unit, 1 + unit / 2, -1 - unit / 2, 1 + 0.49 * unit, 3e38, np.inf])
    expected = np.float32([1, 1 + unit, 1 + unit, -1 - unit, 1, 3e38, np.inf])
    _, _, tf32 = plain.convert(np.resize(numbers, 32))
    np.testing.assert_allclose(tf32[:7], expected, rtol=2**-11)
    np.testing.assert_array_equal(tf32[:5], expected[:5])
    assert np.isnan(plain.convert(np.full(32, np.nan, np.float32))[2]).all()
