"""Plans: what they refuse, what they derive, and the round trip through flat tuples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fastlif.ops.connection import Connection, as_sizes, conv_connection, dense_connection
from fastlif.ops.encoding import FLOATS_PER_LAYER, INTS_PER_LAYER, decode, encode
from fastlif.ops.plan import LayerPlan, check_stack, readout_kind, spatial_shape, surrogate_scale


def conv1d_plan() -> LayerPlan:
    link, features = conv_connection(
        (2, 30), 4, kernel=(7,), stride=(3,), padding=(1,), dilation=(2,)
    )
    return LayerPlan("lif", features, link, (1, 5), decay_mem=0.9, decay_syn=0.8, delay=1)


def conv2d_plan() -> LayerPlan:
    link, features = conv_connection(
        (3, 9, 8), 5, kernel=(3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 3)
    )
    return LayerPlan(
        "lif",
        features,
        link,
        (3, 5),
        decay_mem=math.exp(-0.1),
        decay_syn=math.exp(-0.2),
        threshold=0.7,
        surrogate_slope=11.0,
        surrogate_scale=3.5,
        detach_reset=False,
    )


def test_shapes_follow_torch_conventions():
    assert spatial_shape((7,)) == (7, 1, 1)
    assert spatial_shape((7, 5)) == (7, 1, 5)
    assert spatial_shape((7, 5, 3)) == (7, 5, 3)
    plan = conv1d_plan()
    # floor((30 + 2 * 1 - 2 * (7 - 1) - 1) / 3) + 1
    assert plan.features == (4, 7) and plan.shape == (4, 1, 7)
    assert plan.feedforward.weight_shape == (4, 2, 1, 7) and plan.feedforward.fan_in == 14
    assert plan.recurrent_weight_shape == (4, 4, 1, 5)
    assert conv2d_plan().features == (5, 4, 7)


def test_a_dense_synapse_is_a_kernel_over_the_whole_input():
    link = dense_connection((3, 4, 5), 6)
    assert link.kernel == (4, 5) and link.out_shape == (6, 1, 1)
    assert link.weight_shape == (6, 3, 4, 5) and link.fan_in == 60
    assert dense_connection((9,), 2).weight_shape == (2, 9, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 1, 5), (1, 1, 1), (1, 7)), "larger than the padded input"),
        (((1, 1, 5), (1, 1, 3), (1, 2)), r"out_shape must be \(1, 1, 4\)"),
        (((1, 1), (1, 1, 5), (1, 1)), "in_shape must be 3 integers"),
        (((0, 1, 5), (1, 1, 5), (1, 1)), "in_shape must be 3 integers >= 1"),
        (((1, 1, 5), (1, 1, 5), (1, 0)), "kernel must be 2 integers >= 1"),
        (((1, 1, 5), (1, 1, 5), (1, 1), (1, 0)), "stride must be 2 integers >= 1"),
        (((1, 1, 5), (1, 1, 3), (1, 1), (1, 1), (0, -1)), "padding must be 2 integers >= 0"),
        (((1, 1, 5), (1, 1, 5), (1, 1), (1, 1), (0, 0), (1, 0)), "dilation must be 2 integers"),
        (((1, 1, 5), (1, 1, 5), (1, 1.0)), "kernel must be 2 integers"),
    ],
)
def test_connections_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Connection(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "LIF"}, "kind must be one of lif, readout_max"),
        ({"decay_mem": math.nan}, "decay_mem must be finite, >= 0 and < 1, got nan"),
        ({"decay_mem": 1.0}, "decay_mem must be finite, >= 0 and < 1, got 1.0"),
        ({"decay_syn": -0.1}, "decay_syn must be finite, >= 0 and < 1, got -0.1"),
        ({"decay_syn": math.inf}, "decay_syn"),
        ({"threshold": 0.0}, "threshold must be finite and > 0, got 0.0"),
        ({"threshold": math.nan}, "threshold"),
        ({"surrogate_slope": -1.0}, "surrogate_slope must be finite and > 0"),
        ({"surrogate_scale": math.inf}, "surrogate_scale must be finite and > 0"),
        ({"delay": 2}, "delay must be 0 or 1, got 2"),
        ({"detach_reset": 1}, "detach_reset must be True or False, got 1"),
        ({"features": (4, 8)}, r"features \(4, 8\) must match"),
        ({"features": ()}, "features must have 1 to 3 dimensions"),
        ({"features": (4, 0), "feedforward": None}, "features must be 2 integers >= 1"),
        ({"recurrent_kernel": (1, 4)}, r"recurrent_kernel must be odd .* got \(1, 4\)"),
        ({"recurrent_kernel": (3, 3)}, "recurrent_kernel must be 1 along"),
        ({"recurrent_kernel": (0, 1)}, "recurrent_kernel must be 2 integers >= 1"),
        ({"kind": "readout_max"}, "only a 'lif' layer can have recurrent_kernel"),
        (
            {"kind": "current", "recurrent_kernel": None, "feedforward": None},
            "'current' needs a feedforward connection",
        ),
    ],
)
def test_layers_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(conv1d_plan(), **changes)


def test_convolution_needs_the_right_number_of_dimensions():
    with pytest.raises(ValueError, match=r"\(channels, length\) for a 1-d convolution, got \(5,\)"):
        conv_connection((5,), 1, kernel=(3,), stride=(1,), padding=(0,), dilation=(1,))


def test_neighbours_must_fit():
    first = conv1d_plan()
    readout = LayerPlan("readout_max", (3,), dense_connection((4, 7), 3))
    check_stack([first, readout])
    with pytest.raises(ValueError, match="at least one layer"):
        check_stack([])
    wrong = LayerPlan("readout_max", (3,), dense_connection((28,), 3))
    with pytest.raises(ValueError, match=r"layer 1 expects input of shape \(28, 1, 1\)"):
        check_stack([first, wrong])
    with pytest.raises(ValueError, match="layer 0 of kind 'readout_max' must be the last"):
        check_stack([readout, LayerPlan("lif", (2,), dense_connection((3,), 2))])
    with pytest.raises(ValueError, match="layer 1 needs a feedforward connection"):
        check_stack([first, LayerPlan("lif", (4, 7))])


def test_encode_lists_the_documented_numbers():
    ints, floats = encode([conv2d_plan()])
    assert len(ints) == 1 + INTS_PER_LAYER and len(floats) == FLOATS_PER_LAYER
    assert ints[0] == 1
    assert ints[1:6] == (0, 3, 5, 4, 7)
    assert ints[6:18] == (1, 3, 9, 8, 3, 2, 2, 1, 0, 1, 1, 3)
    assert ints[18:24] == (1, 3, 5, 0, 0, 0) and set(ints[24:]) == {0}
    assert floats == (math.exp(-0.1), math.exp(-0.2), 0.7, 11.0, 3.5, 0.0, 0.0, 0.0, 0.0)


def test_decode_gives_back_every_kind_exactly():
    conv = conv1d_plan()
    stacks = [
        [conv, LayerPlan("readout_max", (3,), dense_connection((4, 7), 3), decay_mem=0.1)],
        [conv2d_plan(), LayerPlan("readout_trace", (2,), dense_connection((5, 4, 7), 2), delay=1)],
        [LayerPlan("lif", (6,), None, (1, 1), decay_mem=1 / 3, decay_syn=0.7)],
        [LayerPlan("lif", (6, 2)), LayerPlan("current", (5,), dense_connection((6, 2), 5))],
    ]
    for plans in stacks:
        assert decode(*encode(plans)) == tuple(plans)
    with pytest.raises(ValueError, match="1 layers need 29 ints and 9 floats, got 29 and 4"):
        decode((1,) + (0,) * 28, (0.0,) * 4)


def test_small_helpers():
    assert as_sizes("stride", 3, 2) == (3, 3) and as_sizes("stride", [2, 1], 2) == (2, 1)
    with pytest.raises(ValueError, match=r"stride must be an int or 2 ints, got \(1,\)"):
        as_sizes("stride", (1,), 2)
    assert surrogate_scale(0.5, 20.0, rescale=False) == 1.0
    assert surrogate_scale(0.5, 20.0, rescale=True) == 121.0
    assert (readout_kind("max"), readout_kind("none")) == ("readout_max", "readout_trace")
    with pytest.raises(ValueError, match="reduction must be 'max' or 'none', got 'sum'"):
        readout_kind("sum")
