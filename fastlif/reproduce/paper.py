"""Numbers that the paper prints, to be shown beside ours (Rossbroich, Gygax, Zenke 2022).

Accuracies are shares of 1. Those of Table 1 and of the text are means over five seeds.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Published", "published"]


class Published(NamedTuple):
    """A mean over seeds and its standard deviation; 0 where the paper gives none."""

    mean: float
    std: float


# (metric, network, condition); runs with a target are those at sigma_U = 1.
_PUBLISHED: dict[tuple[str, str, str], tuple[float, float]] = {
    # Table 1, and the text of section 2.2 for ten layers.
    ("test_accuracy", "conv-3", "Kaiming"): (0.831, 0.012),
    ("test_accuracy", "conv-3", "fluctuation-driven"): (0.827, 0.011),
    ("test_accuracy", "conv-7", "Kaiming"): (0.045, 0.0),
    ("test_accuracy", "conv-7", "Kaiming + homeostasis"): (0.770, 0.029),
    ("test_accuracy", "conv-7", "fluctuation-driven"): (0.835, 0.013),
    ("test_accuracy", "conv-10", "fluctuation-driven"): (0.811, 0.016),
    ("test_accuracy", "CIFAR conv-2", "Kaiming"): (0.595, 0.008),
    ("test_accuracy", "CIFAR conv-2", "fluctuation-driven"): (0.624, 0.003),
    ("test_accuracy", "CIFAR conv-4", "Kaiming"): (0.100, 0.0),
    ("test_accuracy", "CIFAR conv-4", "Kaiming + homeostasis"): (0.703, 0.009),
    ("test_accuracy", "CIFAR conv-4", "fluctuation-driven"): (0.656, 0.013),
    ("test_accuracy", "DVS conv-6", "Kaiming"): (0.546, 0.371),
    ("test_accuracy", "DVS conv-6", "fluctuation-driven"): (0.867, 0.012),
    ("test_accuracy", "DVS conv-8", "Kaiming"): (0.091, 0.0),
    ("test_accuracy", "DVS conv-8", "Kaiming + homeostasis"): (0.823, 0.053),
    ("test_accuracy", "DVS conv-8", "fluctuation-driven"): (0.864, 0.017),
    # Text of sections 2.1 to 2.3; validation accuracies are those after the last epoch.
    ("final_validation_accuracy", "conv-3", "Kaiming"): (0.959, 0.016),
    ("final_validation_accuracy", "conv-3", "fluctuation-driven"): (0.941, 0.017),
    ("final_validation_accuracy", "conv-7", "Kaiming"): (0.047, 0.005),
    ("final_validation_accuracy", "conv-7", "Kaiming + homeostasis"): (0.950, 0.018),
    ("final_validation_accuracy", "conv-7", "fluctuation-driven"): (0.949, 0.010),
    ("final_validation_accuracy", "conv-10", "fluctuation-driven"): (0.936, 0.029),
    ("test_accuracy", "Randman dense", "fluctuation-driven"): (0.973, 0.002),
    ("train_accuracy", "Randman dense", "fluctuation-driven"): (0.996, 0.0),
    ("test_accuracy", "dense", "fluctuation-driven"): (0.655, 0.007),
    ("train_accuracy", "dense", "fluctuation-driven"): (1.0, 0.0),
    ("test_accuracy", "Dalian dense", "fluctuation-driven"): (0.822, 0.012),
    ("train_accuracy", "Dalian dense", "fluctuation-driven"): (0.998, 0.0),
    # 7.1 percentage points below the Dalian network.
    ("test_accuracy", "dense-160", "fluctuation-driven"): (0.751, 0.0),
    ("epochs_to_90", "conv-1", "fluctuation-driven"): (19.2, 0.0),
    ("epochs_to_90", "conv-3", "fluctuation-driven"): (16.8, 0.0),
}


def published(
    metric: str, network: str, condition: str, target: float | None = 1.0
) -> Published | None:
    """What the paper prints for a network under a condition, None if it prints nothing.

    target: of sigma_U; the paper prints numbers for 1 and for initializations without one.
    """
    found = _PUBLISHED.get((metric, network, condition))
    return Published(*found) if found and target in (1.0, None) else None
