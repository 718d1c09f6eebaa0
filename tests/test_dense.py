"""The synapses by torch's libraries, in the neuron order of the GPU kernels, against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastlif.ops import dense
from fastlif.ops.connection import conv_connection, dense_connection
from fastlif.ops.plan import LayerPlan


@pytest.mark.parametrize("features", [(7,), (3, 5), (1, 6), (4, 1), (3, 4, 5), (1, 4, 5)])
def test_flat_is_channels_last_and_back(features):
    user = torch.randn(2, 3, *features)
    flat = dense.to_flat(user, features)
    assert flat.shape == (2, 3, user[0, 0].numel()) and flat.is_contiguous()
    channels = features[0]
    by_hand = user.reshape(2, 3, channels, -1)
    for neuron in range(flat.shape[2]):
        position, channel = divmod(neuron, channels)
        assert torch.equal(flat[..., neuron], by_hand[:, :, channel, position])
    back = dense.to_user(flat, features)
    assert torch.equal(back, user) and back.is_contiguous()


def plans() -> dict[str, LayerPlan]:
    conv1d, features1d = conv_connection(
        (3, 20), 5, kernel=(4,), stride=(2,), padding=(1,), dilation=(2,)
    )
    conv2d, features2d = conv_connection(
        (3, 9, 8), 5, kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)
    )
    return {
        "dense": LayerPlan("lif", (5,), dense_connection((6,), 5)),
        "dense-on-a-map": LayerPlan("lif", (5,), dense_connection((3, 4, 2), 5)),
        "conv1d": LayerPlan("lif", features1d, conv1d),
        "conv2d": LayerPlan("lif", features2d, conv2d),
    }


@pytest.mark.parametrize("name", plans())
def test_products_against_autograd(name):
    plan = plans()[name]
    link = plan.feedforward
    values = torch.randn(4, 2, *link.in_shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(link.weight_shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(link.out_shape[0], dtype=torch.float64)
    expected = F.conv2d(
        values.flatten(0, 1), weight, bias, link.stride, link.padding, link.dilation
    ).unflatten(0, (4, 2))
    found = dense.injected_current(values.detach(), plan, weight.detach(), bias)
    assert torch.allclose(found, dense.to_flat(expected, link.out_shape))
    grad = torch.randn_like(expected)
    grad_values, grad_weight = torch.autograd.grad(expected, (values, weight), grad)
    flat = dense.to_flat(grad, link.out_shape)
    back = dense.input_gradient(flat, plan, weight.detach(), reduced=False)
    assert torch.allclose(back, dense.to_flat(grad_values, link.in_shape))
    own = dense.weight_gradient(flat, values.detach(), plan, reduced=False)
    assert torch.allclose(own, grad_weight)


def test_precision_of_the_libraries_is_given_back():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.conv.fp32_precision, cudnn.deterministic
    for reduced, precision in ((False, "ieee"), (True, "tf32")):
        with dense.library_precision(reduced):
            assert cudnn.deterministic and not cudnn.benchmark
            assert cudnn.conv.fp32_precision == precision
        assert (cudnn.allow_tf32, cudnn.conv.fp32_precision, cudnn.deterministic) == before


def test_newer_and_older_settings_of_precision_may_be_mixed():
    """Reading the older ones is an error of torch's then."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        assert dense.reduced_products_allowed(torch.float32)
        with dense.library_precision(reduced=True):
            assert conv.fp32_precision == "tf32"
        assert conv.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


@pytest.mark.parametrize(("setting", "allowed"), [("highest", False), ("high", True)])
def test_reduced_products_are_the_users_choice(setting, allowed):
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision(setting)
    try:
        assert dense.reduced_products_allowed(torch.float32) == allowed
        assert not dense.reduced_products_allowed(torch.float64)
    finally:
        torch.set_float32_matmul_precision("highest")
