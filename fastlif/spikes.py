"""Binary spikes packed along time, 32 steps in a word: 1/32 of the memory of a float tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlif import extension

WORD_STEPS = 32
KERNEL_DTYPES = (torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def n_words(n_steps: int) -> int:
    """Words that hold `n_steps` steps."""
    return (n_steps + WORD_STEPS - 1) // WORD_STEPS


@dataclass(frozen=True, eq=False)
class PackedSpikes:
    """Spikes of shape (time, batch, *features), one bit each.

    `words` is int32 of shape (ceil(time / 32), batch, N); bit q of word c is step 32 c + q, and the
    N neurons are the features flattened channels last: (C, L) has neuron (c, l) at l * C + c, (N,)
    is as it is. Layers take it in place of a float tensor. Raises ValueError when the parts do not
    fit together.
    """

    words: Tensor
    n_steps: int
    features: tuple[int, ...]

    def __post_init__(self) -> None:
        expected = (n_words(self.n_steps), math.prod(self.features))
        shape = tuple(self.words.shape)
        if self.n_steps < 1 or self.words.dim() != 3 or (shape[0], shape[2]) != expected:
            raise ValueError(
                f"words must have shape ({expected[0]}, batch, {expected[1]}) for "
                f"{self.n_steps} steps of features {self.features}, got {shape}"
            )
        if self.words.dtype != torch.int32:
            raise TypeError(f"words must have dtype int32, got {self.words.dtype}")

    @property
    def shape(self) -> torch.Size:
        """(time, batch, *features)."""
        return torch.Size((self.n_steps, self.words.shape[1], *self.features))

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.words.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedSpikes:
        """The same spikes on another device."""
        words = self.words.to(device, non_blocking=non_blocking)
        return PackedSpikes(words, self.n_steps, self.features)

    def select(self, indices: Tensor, *, pinned: bool = False) -> PackedSpikes:
        """The samples with these indices (int64, one-dimensional, on the device of the words).

        `pinned` puts them into page-locked memory, from where `to(device, non_blocking=True)` does
        not wait; the words must be on the CPU, and torch must see a GPU.
        """
        if not pinned:
            words = self.words.index_select(1, indices)
        else:
            shape = (self.words.shape[0], len(indices), self.words.shape[2])
            words = torch.empty(shape, dtype=torch.int32, device="cpu", pin_memory=True)
            torch.index_select(self.words, 1, indices, out=words)
        return PackedSpikes(words, self.n_steps, self.features)

    def __getitem__(self, samples: slice) -> PackedSpikes:
        """A slice of the batch."""
        if not isinstance(samples, slice):
            raise TypeError(f"samples must be a slice of the batch, got {samples!r}; see select()")
        return PackedSpikes(self.words[:, samples], self.n_steps, self.features)

    def __len__(self) -> int:
        """Number of samples."""
        return self.words.shape[1]

    def reshape_features(self, features: Sequence[int]) -> PackedSpikes:
        """The same neurons seen as another feature map whose channels-last order is the same.

        True of (N,), (1, N) and (1, 1, N), and of (C, L) and (C, 1, L); ValueError for others.
        """
        features = tuple(features)
        if _channels_last_order(features) != _channels_last_order(self.features):
            raise ValueError(
                f"features {self.features} cannot be seen as {features} without moving bits"
            )
        return PackedSpikes(self.words, self.n_steps, features)

    def count(self) -> int:
        """Number of spikes; waits for the device."""
        pairs = self.words.contiguous().view(torch.uint8)
        pairs = (pairs & 0x55) + ((pairs >> 1) & 0x55)
        nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
        return int(((nibbles & 0x0F) + (nibbles >> 4)).sum(dtype=torch.int64))

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros and ones of shape (time, batch, *features)."""
        if extension.is_available() and self.device.type == "cpu" and dtype in KERNEL_DTYPES:
            dense = torch.empty(self.shape, dtype=dtype, device="cpu")
            words = self.words.contiguous()
            extension.load().unpack(
                words.data_ptr(),
                self.n_steps,
                len(self),
                spatial_shape(self.features),
                torch.get_num_threads(),
                dense.data_ptr(),
                dtype == torch.float64,
            )
            return dense
        bits = torch.arange(WORD_STEPS, dtype=torch.int32, device=self.device)
        dense = (self.words.unsqueeze(1) >> bits.view(1, -1, 1, 1)).bitwise_and_(1).to(dtype)
        dense = dense.flatten(0, 1)[: self.n_steps]
        if len(self.features) == 1:
            return dense
        return dense.unflatten(2, (*self.features[1:], self.features[0])).movedim(-1, 2)

    @staticmethod
    def pack(dense: Tensor, *, validate: bool = True) -> PackedSpikes:
        """Pack a (time, batch, *features) tensor of zeros and ones; ValueError for other values.

        Looking for other values waits for the device. With `validate=False` nothing waits, and
        every value but 0 is a spike.
        """
        if dense.dim() < 3 or dense.numel() == 0:
            raise ValueError(
                f"dense must be (time, batch, *features), none empty, got {tuple(dense.shape)}"
            )
        dense = dense.detach()
        if validate and _has_kernels(dense):
            # Any other type of number fits: what is neither 0 nor 1 there is neither in float32.
            words = pack_words(dense if dense.dtype in KERNEL_DTYPES else dense.to(torch.float32))
        elif validate and bool(((dense != 0) & (dense != 1)).any()):
            words = None
        else:
            words = _pack_planes(dense)
        if words is None:
            raise ValueError("dense must hold only 0 and 1 to be packed, got other values")
        return PackedSpikes(words, dense.shape[0], tuple(dense.shape[2:]))

    @staticmethod
    def from_events(
        step: Tensor,  # (events,) integers, of all samples one after the other
        feature: Tensor,  # (events,) integers, neuron in channels-last order
        offsets: Tensor,  # (batch + 1,) int64: events of sample b are offsets[b] .. offsets[b+1]
        *,
        n_steps: int,
        features: Sequence[int],
        validate: bool = True,
    ) -> PackedSpikes:
        """Spikes from lists of events, on the device of these lists.

        Events outside the `n_steps` steps are dropped and repeated ones count once. Raises
        ValueError for a feature out of range or offsets that do not fit.

        On a GPU the last two checks wait for the device. `validate=False` leaves them out: events
        with a feature out of range and events behind offsets[-1] are then dropped too, so that
        buffers of one size can hold any number of events, as a CUDA graph needs it. While packing
        there, every step of a neuron takes a byte.
        """
        features = tuple(features)
        size = math.prod(spatial_shape(features))
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        for name, tensor in (("step", step), ("feature", feature), ("offsets", offsets)):
            fits = tensor.dim() == 1 and tensor.dtype in INTEGERS
            if not fits or tensor.device != step.device or tensor.device.type == "meta":
                raise ValueError(
                    f"{name} must be a one-dimensional integer tensor on the device of step, got "
                    f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
                )
        if step.shape != feature.shape:
            raise ValueError(
                f"step and feature must be equally long, got {len(step)} and {len(feature)}"
            )
        if len(offsets) == 0:
            raise ValueError("offsets must hold at least one number, got none")
        offsets = offsets.to(torch.int64).contiguous()
        if validate:
            _check_events(feature, offsets, size)
        if validate and _has_kernels(step):
            words = _pack_events_on_cpu(step, feature, offsets, n_steps, size)
        else:
            words = _pack_events(step, feature, offsets, n_steps, size)
        return PackedSpikes(words, n_steps, features)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and extension.is_available()


def _check_events(feature: Tensor, offsets: Tensor, size: int) -> None:
    # Before the numbers are narrowed: out of range must stay out of range.
    outside = (feature < 0) | (feature >= size)
    if bool(outside.any()):
        raise ValueError(f"feature must be in [0, {size}), got {int(feature[outside][0])}")
    rises = not bool((offsets.diff() < 0).any())
    if not rises or int(offsets[0]) != 0 or int(offsets[-1]) != len(feature):
        raise ValueError(f"offsets must rise from 0 to the number of events, {len(feature)}")


def _pack_events_on_cpu(
    step: Tensor, feature: Tensor, offsets: Tensor, n_steps: int, size: int
) -> Tensor:
    """Words of checked events."""
    step, feature = step.clamp(-1, n_steps).to(torch.int32), feature.to(torch.int32)
    step, feature = step.contiguous(), feature.contiguous()
    batch = len(offsets) - 1
    words = torch.empty((n_words(n_steps), batch, size), dtype=torch.int32, device="cpu")
    extension.load().pack_events(
        step.data_ptr(),
        feature.data_ptr(),
        offsets.data_ptr(),
        n_steps,
        batch,
        size,
        torch.get_num_threads(),
        words.data_ptr(),
    )
    return words


def _pack_events(step: Tensor, feature: Tensor, offsets: Tensor, n_steps: int, size: int) -> Tensor:
    """Words of events on any device; whatever does not fit is dropped, and nothing waits."""
    batch = len(offsets) - 1
    step, feature = step.to(torch.int64), feature.to(torch.int64)
    numbers = torch.arange(len(step), device=step.device)
    sample = torch.searchsorted(offsets, numbers, right=True) - 1
    fits = (step >= 0) & (step < n_steps) & (feature >= 0) & (feature < size)
    fits &= (sample >= 0) & (sample < batch)
    # A byte per step and neuron and one for what does not fit. Events that meet write the same
    # value, so their order does not matter.
    n_bytes = n_steps * batch * size
    spikes = torch.zeros(n_bytes + 1, dtype=torch.uint8, device=step.device)
    spikes.index_fill_(0, torch.where(fits, (step * batch + sample) * size + feature, n_bytes), 1)
    return _pack_planes(spikes[:n_bytes].view(n_steps, batch, size))


def _pack_planes(
    dense: Tensor,  # (time, batch, *features) on any device
) -> Tensor:
    """Words of a dense tensor whose values other than 0 are spikes, one bit of all at a time."""
    size = math.prod(dense.shape[2:])
    shape = (n_words(dense.shape[0]), dense.shape[1], size)
    words = torch.zeros(shape, dtype=torch.int32, device=dense.device)
    for bit in range(min(WORD_STEPS, dense.shape[0])):
        plane = dense[bit::WORD_STEPS] != 0
        if plane.dim() > 3:
            plane = plane.movedim(2, -1).flatten(2)
        words[: len(plane)].bitwise_or_(plane.to(torch.int32) << bit)
    return words


def spatial_shape(features: Sequence[int]) -> tuple[int, int, int]:
    """(N,) -> (N, 1, 1); (C, L) -> (C, 1, L); (C, H, W) unchanged."""
    match tuple(features):
        case (channels,):
            return (channels, 1, 1)
        case (channels, length):
            return (channels, 1, length)
        case (channels, height, width):
            return (channels, height, width)
    raise ValueError(
        f"features must have 1 to 3 dimensions, (N,), (C, L) or (C, H, W), got {tuple(features)}"
    )


def pack_words(
    dense: Tensor,  # (time, batch, *features), float32 or float64, on cpu
) -> Tensor | None:
    """Words of a dense tensor, or None when a value is neither 0 nor 1."""
    n_steps, batch = dense.shape[:2]
    features = tuple(dense.shape[2:])
    if not dense[0, 0].is_contiguous():
        dense = dense.contiguous()
    shape = (n_words(n_steps), batch, math.prod(features))
    words = torch.empty(shape, dtype=torch.int32, device="cpu")
    binary = extension.load().pack(
        dense.data_ptr(),
        dense.dtype == torch.float64,
        dense.stride(0),
        dense.stride(1),
        n_steps,
        batch,
        spatial_shape(features),
        torch.get_num_threads(),
        words.data_ptr(),
    )
    return words if binary else None


def _channels_last_order(features: tuple[int, ...]) -> tuple[int, int]:
    """(channels, positions), with one channel and one position being the same thing."""
    channels, positions = features[0], math.prod(features[1:])
    return (1, channels * positions) if channels == 1 or positions == 1 else (channels, positions)
