"""Labelled images, kept as bytes and handed out as floating point numbers in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlif.data.dataset import to_device

__all__ = ["ImageDataset"]


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size, one byte for each value: CIFAR-10 takes 154 MB for training.

    Raises:
        TypeError: images are not uint8 or targets are not int64.
        ValueError: the shapes do not fit each other, or a target has no class name.
    """

    images: Tensor  # (samples, C, H, W) uint8
    targets: Tensor  # (samples,) int64 class numbers
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.targets.dtype != torch.int64:
            raise TypeError(
                "images must be uint8 and targets int64, got "
                f"{self.images.dtype} and {self.targets.dtype}"
            )
        if self.images.dim() != 4 or self.targets.shape != self.images.shape[:1]:
            raise ValueError(
                "images must be (samples, C, H, W) with one target each, got "
                f"{tuple(self.images.shape)} and {tuple(self.targets.shape)}"
            )
        if len(self) == 0:
            raise ValueError("images must hold at least one sample, got none")
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= self.n_classes:
            raise ValueError(f"targets must lie in 0..{self.n_classes - 1}, got {low}..{high}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_classes(self) -> int:
        """Number of class names."""
        return len(self.class_names)

    @property
    def features(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def n_bytes(self) -> int:
        """Memory of the images."""
        return self.images.numel()

    def to(self, device: torch.device | str) -> ImageDataset:
        """The same images on another device."""
        return ImageDataset(self.images.to(device), self.targets.to(device), self.class_names)

    def select(
        self,
        indices: Tensor,  # (batch,) int64, on the device of the images
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Images (batch, C, H, W) float32 and targets (batch,) of the samples at `indices[part]`.

        Byte b becomes b / 127.5 - 1. They go to `device` as bytes and become numbers there. The
        paper trains on the images as they are, so `generator` changes nothing.
        """
        indices = indices[part]
        images = to_device(self.images.index_select(0, indices), device)
        targets = to_device(self.targets.index_select(0, indices), device)
        return images.to(torch.float32).div_(127.5).sub_(1.0), targets
