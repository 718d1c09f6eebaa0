"""Pooling of packed spikes against torch's max pooling of numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastlif import LIFConv1d, LIFLinear, MaxPool1d, MaxPool2d, Sequential
from fastlif.ops import pooling
from fastlif.ops.connection import conv_connection
from fastlif.spikes import PackedSpikes

# kernel, stride, padding, dilation
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), (1, 1)),
    ((3, 2), (2, 1), (1, 1), (1, 1)),
    ((2, 3), (3, 1), (1, 0), (1, 2)),
    ((5, 4), (1, 3), (2, 2), (2, 1)),
    ((1, 1), (2, 1), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("density", [0.03, 0.4])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_words_and_routes_are_those_of_torch(window, density):
    n_steps, features = 35, (3, 11, 10)
    kernel, stride, padding, dilation = window
    generator = torch.Generator().manual_seed(5)
    spikes = (torch.rand(n_steps, 2, *features, generator=generator) < density).float()
    link, pooled_features = conv_connection(
        features, 3, kernel=kernel, stride=stride, padding=padding, dilation=dilation
    )
    words = PackedSpikes.pack(spikes).words
    expected, source = F.max_pool2d(
        spikes.flatten(0, 1), kernel, stride, padding, dilation, return_indices=True
    )
    pooled = PackedSpikes(pooling.pooled_words(words, link), n_steps, pooled_features)
    assert torch.equal(pooled.unpack(torch.float32).flatten(0, 1), expected)
    assert 0 < expected.mean() < 1

    routes = pooling.routes(words, link)
    assert routes.shape == (kernel[0] * kernel[1], *pooled.words.shape)
    tops = torch.arange(pooled_features[1])[:, None] * stride[0] - padding[0]
    lefts = torch.arange(pooled_features[2])[None, :] * stride[1] - padding[1]
    for tap, route in enumerate(routes):
        y = tops + tap // kernel[1] * dilation[0]
        x = lefts + tap % kernel[1] * dilation[1]
        inside = (y >= 0) & (y < features[1]) & (x >= 0) & (x < features[2])
        chosen = PackedSpikes(route.contiguous(), n_steps, pooled_features).unpack(torch.float32)
        assert torch.equal(chosen.flatten(0, 1) != 0, inside & (source == y * features[2] + x))


def test_the_modules_refuse_what_they_cannot_pool():
    network = Sequential(LIFLinear(5, 8), MaxPool1d(2))
    with pytest.raises(ValueError, match=r"MaxPool1d must have features \(channels, length\), got"):
        network(torch.zeros(4, 3, 5))
    packed = PackedSpikes.pack(torch.ones(4, 3, 2, 6, 6))
    with pytest.raises(TypeError, match=r"MaxPool2d needs a dense input: give input.unpack\(\)"):
        MaxPool2d(2)(packed)
    for name, options in (("kernel_size", {}), ("stride", {"kernel_size": 2, "stride": 1.0})):
        with pytest.raises(ValueError, match=f"{name} must be an int or 2 ints, got"):
            MaxPool2d(**{"kernel_size": 2.0, **options})
    with pytest.raises(ValueError, match=r"kernel_size must be an int or 2 ints, got \(2, 1.5\)"):
        MaxPool2d((2, 1.5))


def test_windows_in_the_padding_alone_are_refused_alone_and_in_a_stack():
    pool = MaxPool1d(2, 1, padding=1, dilation=3)  # of length 2, the sources are -1 and 2
    layer = LIFConv1d(1, 2, 1)
    for model, input in ((pool, layer(torch.ones(4, 3, 1, 2))), (Sequential(layer, pool), None)):
        with pytest.raises(ValueError, match="must have a source in every window, got kernel"):
            model(torch.ones(4, 3, 1, 2) if input is None else input)
    assert pool(torch.ones(4, 3, 1, 3)).shape == (4, 3, 1, 2)
