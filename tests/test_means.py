"""The kernel of means: its numbers, its derivatives, and bits that depend on the row alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.ops import means

from .emulation import emulated_cuda, order_of_threads
from .targets import HERE, Target, emulated_means

LENGTHS = (1, 5, 32, 129, 1024, 1025, 5000)  # of rows for a warp, and for a block
# float32 adds a thousand numbers in a few rounds of a tree.
TOLERANCES = {torch.float32: 2e-7, torch.float64: 1e-15}


@pytest.fixture(params=[t for t in HERE if t.name in ("emulated", "cuda")], ids=lambda t: t.name)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """That of the tensors whose means the kernel takes."""
    target: Target = request.param
    if target.name == "cuda":
        yield "cuda"
    else:
        with emulated_means(emulated_cuda()):
            yield "cpu"


def values(rows: int, columns: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Around 3, so that no mean is near 0."""
    generator = torch.Generator().manual_seed(columns)
    return (torch.randn(rows, columns, generator=generator, dtype=dtype) + 3.0).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", LENGTHS)
def test_means_and_their_independence_of_other_rows(
    device: str, columns: int, dtype: torch.dtype
) -> None:
    x = values(19, columns, dtype, device)
    found = means.row_means(x)
    expected = x.double().mean(1)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCES[dtype], atol=0.0)
    for rows in (slice(0, 1), slice(7, 8), slice(7, 16)):
        assert torch.equal(means.row_means(x[rows]), found[rows])
    assert torch.equal(means.row_means(x.t().contiguous().t()), found)


@pytest.mark.parametrize("columns", [40, 1100])
def test_no_order_of_threads_changes_a_bit(columns: int) -> None:
    kernels = emulated_cuda(find_races=True)
    x = values(9, columns, torch.float32, "cpu")
    expected = means.launch(kernels, x, stream=0)
    for seed in (1, 2):
        with order_of_threads(kernels, seed):
            assert torch.equal(means.launch(kernels, x, stream=0), expected)


def test_not_finite_numbers_stay_in_their_row(device: str) -> None:
    x = values(4, 70, torch.float32, device)
    x[1, 50], x[2, 3] = float("nan"), float("inf")
    found = means.row_means(x)
    assert found[1].isnan() and found[2] == float("inf") and found[::3].isfinite().all()


def test_derivatives(device: str) -> None:
    x = values(3, 6, torch.float64, device).requires_grad_()
    assert torch.autograd.gradcheck(means.row_means, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: means.row_means(x * x), x)
    gradient = torch.func.grad(lambda x: means.row_means(x).square().sum())(x.detach())
    torch.testing.assert_close(gradient, (x.mean(1, keepdim=True) / 3).expand(3, 6).detach())
    mapped = torch.func.vmap(means.row_means, in_dims=1)(x.detach().unflatten(1, (3, 2)))
    torch.testing.assert_close(mapped, x.detach().unflatten(1, (3, 2)).mean(2).t())


def test_the_operation_is_what_it_says(device: str) -> None:
    x = values(3, 6, torch.float32, device)
    torch.library.opcheck(
        torch.ops.fastlif.row_means.default, (x,), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("shape", [(12, 70), (12, 3, 500)])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_losses_are_those_of_torch_and_of_each_network_alone(device, shape, per):
    generator = torch.Generator().manual_seed(1)
    counts = (torch.rand(shape, generator=generator, dtype=torch.float64) * 9).to(device)
    scores = torch.randn(12, 5, generator=generator, dtype=torch.float64).to(device)
    targets = torch.randint(0, 5, (12,), generator=generator).to(device)

    def losses(counts, scores, targets, networks=None):
        inputs = [x.detach().requires_grad_() for x in (counts, scores)]
        upper = upper_bound(inputs[:1], 4.0, 0.5, per, networks=networks)
        lower = lower_bound(inputs[:1], 6.0, 0.7, networks=networks)
        cross_entropy = max_over_time_cross_entropy(inputs[1], targets, networks=networks)
        parts = torch.stack((upper, lower, cross_entropy))
        return (parts, *torch.autograd.grad(parts.sum(), inputs))

    together = losses(counts, scores, targets, 3)
    assert together[0].shape == (3, 3)
    for number in range(3):
        own = [x.chunk(3)[number] for x in (counts, scores, targets)]
        alone = losses(*own)
        assert torch.equal(together[0][:, number], alone[0])
        for all_of_them, gradient in zip(together[1:], alone[1:], strict=True):
            assert torch.equal(all_of_them.chunk(3)[number], gradient)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(means, "suits", lambda values: False)
            plain = losses(*own)
        for found, expected in zip(alone, plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
