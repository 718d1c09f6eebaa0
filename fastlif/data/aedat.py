"""Reader for event-camera files in the format AEDAT 3.1, as far as they hold polarity events.

A text header, lines that start with '#' up to `#!END-HEADER`, is followed by packets. A packet has
a header of 28 bytes, little-endian: type (int16, 1 for polarity events), source (int16), bytes per
event, offset of an event's time stamp, overflows of the time stamp, capacity, number of events and
number of valid ones (int32 each). Then come `capacity` events. A polarity event has 8 bytes: 32
bits with validity in bit 0, polarity in bit 1, y in bits 2-16 and x in bits 17-31, and the lower 31
bits of its time in microseconds.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlif.data.files import require_file
from fastlif.data.recordings import CameraEvents

__all__ = ["read_aedat"]

_VERSION = b"#!AER-DAT3.1"
_END = b"#!END-HEADER"
_LONGEST_HEADER = 2**16  # bytes in which the header's end is looked for
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY = 1
_EVENT_BYTES = 8
_TIME_OFFSET = 4


class _Packet(NamedTuple):
    start: int  # byte of its first event
    n_events: int
    overflows: int
    all_valid: bool


def read_aedat(path: Path) -> CameraEvents:
    """All valid polarity events of a file, times in microseconds; other packets are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not AEDAT 3.1, or cut off, or a packet makes no sense. The message names
            the file and the byte.
    """
    content = require_file(path).read_bytes()
    packets = _packets(path, content)
    raw = [np.frombuffer(content, "<u4", 2 * one.n_events, one.start) for one in packets]
    pairs = np.concatenate([np.empty(0, "<u4"), *raw]).reshape(-1, 2)
    counts = [one.n_events for one in packets]
    data, time = pairs[:, 0], pairs[:, 1].astype(np.int64)
    if any(one.overflows for one in packets):
        time += np.repeat(np.array([one.overflows for one in packets], np.int64) << 31, counts)
    events = CameraEvents(
        x=(data >> 17).astype(np.int16),
        y=((data >> 2) & 0x7FFF).astype(np.int16),
        polarity=((data >> 1) & 1).astype(np.int8),
        time=time,
    )
    # Some programs leave the bit of an event unset; the count in the header then still tells.
    certain = np.repeat(np.array([one.all_valid for one in packets], bool), counts)
    valid: NDArray[np.bool_] = certain | ((data & 1) == 1)
    return events if valid.all() else events.at(valid)


def _packets(path: Path, content: bytes) -> list[_Packet]:
    """The packets of polarity events."""
    position, found = _header_length(path, content), []
    while position < len(content):
        if position + _PACKET.size > len(content):
            raise ValueError(
                f"{path}: truncated: {len(content) - position} bytes at byte {position} are no "
                f"packet header, which has {_PACKET.size}"
            )
        kind, _, size, time_offset, overflows, capacity, n_events, n_valid = _PACKET.unpack_from(
            content, position
        )
        where = f"{path}: packet at byte {position}"
        polarity = kind == _POLARITY
        if kind < 0 or size < 1 or not 0 <= n_valid <= n_events <= capacity or overflows < 0:
            raise ValueError(
                f"{where}: damaged header: type {kind}, {size} bytes per event, capacity "
                f"{capacity}, {n_events} events, {n_valid} of them valid, {overflows} overflows"
            )
        if polarity and (size, time_offset) != (_EVENT_BYTES, _TIME_OFFSET):
            raise ValueError(
                f"{where}: polarity events must have {_EVENT_BYTES} bytes with the time at "
                f"{_TIME_OFFSET}, got {size} and {time_offset}"
            )
        start = position + _PACKET.size
        position = start + capacity * size
        if position > len(content):
            raise ValueError(
                f"{where}: truncated: {capacity} events of {size} bytes reach to byte {position}, "
                f"the file ends at {len(content)}"
            )
        if polarity:
            found.append(_Packet(start, n_events, overflows, n_valid == n_events))
    return found


def _header_length(path: Path, content: bytes) -> int:
    """Bytes of the text header."""
    if not content.startswith(_VERSION):
        raise ValueError(f"{path}: must start with {_VERSION.decode()}, got {content[:16]!r}")
    end = content.find(_END, 0, _LONGEST_HEADER)
    line_end = content.find(b"\n", end) if end >= 0 else -1
    if line_end < 0:
        raise ValueError(
            f"{path}: no line {_END.decode()} in the first {_LONGEST_HEADER} bytes, truncated "
            "perhaps"
        )
    for line in content[:end].splitlines():
        if line.startswith(b"#Format:") and line.split(b":")[1].strip() != b"RAW":
            raise ValueError(f"{path}: must be in format RAW, its header says {line.decode()!r}")
    return line_end + 1
