"""Broadcast WAV headers: what soundfile and libsndfile do not write.

Sources: EBU Tech 3285 (the ``bext`` chunk), EBU Tech 3306 (RF64 for data of 4 GiB and more), and
Microsoft's RIFF specification (``fmt``, ``fact``, ``data``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BEXT_BYTES = 602
_TIME_REFERENCE_AT = 338
_PCM, _IEEE_FLOAT = 1, 3
_LARGEST_RIFF_BYTES = 0xFFFF_FFFF
# Chunk sizes that streaming writers leave behind when they cannot go back to fill them in.
_UNKNOWN_SIZES = (0, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF)


@dataclass(frozen=True)
class WavFormat:
    """Layout of the audio data: rate, channels, bits (24 is integer, 32 is float)."""

    sample_rate_hz: int
    channels: int
    bits: int

    @property
    def bytes_per_frame(self) -> int:
        """Bytes of one frame, all channels."""
        return self.channels * self.bits // 8


@dataclass(frozen=True)
class BroadcastInfo:
    """What the ``bext`` chunk says of a stem.

    Parameters
    ----------
    time_reference_frames
        First frame's position on the session's timeline; DAWs can put the file back there.
    description, originator, coding_history
        ASCII; anything else is replaced.
    """

    time_reference_frames: int = 0
    description: str = ""
    originator: str = "Stembridge"
    coding_history: str = ""


def broadcast_wav_header(layout: WavFormat, frames: int, info: BroadcastInfo) -> bytes:
    """Return all bytes before the samples: RIFF or RF64, ``bext``, ``fmt``, ``fact``, ``data``.

    RF64 is used from the size on where RIFF's 32-bit sizes end. The data size is known
    beforehand here, so nothing has to be mended afterwards.
    """
    data_bytes = frames * layout.bytes_per_frame
    is_float = layout.bits == 32
    body = _chunk(b"bext", _bext(info))
    body += _chunk(
        b"fmt ",
        struct.pack(
            "<HHIIHH",
            _IEEE_FLOAT if is_float else _PCM,
            layout.channels,
            layout.sample_rate_hz,
            layout.sample_rate_hz * layout.bytes_per_frame,
            layout.bytes_per_frame,
            layout.bits,
        )
        + (struct.pack("<H", 0) if is_float else b""),
    )
    if is_float:
        body += _chunk(b"fact", struct.pack("<I", min(frames, 0xFFFF_FFFF)))
    padded_data_bytes = data_bytes + data_bytes % 2
    riff_bytes = len(b"WAVE") + len(body) + 8 + padded_data_bytes
    if riff_bytes <= _LARGEST_RIFF_BYTES:
        return (
            struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE")
            + body
            + struct.pack("<4sI", b"data", data_bytes)
        )
    sizes = struct.pack("<QQQI", riff_bytes + 36, data_bytes, frames, 0)
    return (
        struct.pack("<4sI4s", b"RF64", 0xFFFF_FFFF, b"WAVE")
        + _chunk(b"ds64", sizes)
        + body
        + struct.pack("<4sI", b"data", 0xFFFF_FFFF)
    )


def _chunk(identifier: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", identifier, len(content)) + content + b"\0" * (len(content) % 2)


def _bext(info: BroadcastInfo) -> bytes:
    # Date and time stay blank, so that the same job gives the same bytes on every run.
    fixed = struct.pack(
        "<256s32s32s10s8sQH",
        _ascii(info.description),
        _ascii(info.originator),
        b"",
        b"",
        b"",
        info.time_reference_frames,
        1,
    )
    history = _ascii(info.coding_history)
    return fixed.ljust(_BEXT_BYTES, b"\0") + (history + b"\r\n" if history else b"")


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "replace")


@dataclass(frozen=True)
class RiffFacts:
    """What a RIFF file's chunks say, beside what the file holds.

    Parameters
    ----------
    claimed_bytes
        Size of the audio data by its header; None where a streaming writer left it open.
    present_bytes
        Bytes from the start of the audio data to the end of the file.
    time_reference_frames
        Position on a timeline by the ``bext`` chunk in front of the data; 0 without one.
    """

    claimed_bytes: int | None
    present_bytes: int
    time_reference_frames: int


def read_riff_facts(path: Path) -> RiffFacts | None:
    """Return the facts of a RIFF or RF64 file; None for other files and ones without data.

    libsndfile shortens a truncated file without a word; this lets a reader notice.
    """
    with path.open("rb") as file:
        kind, _, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if kind not in (b"RIFF", b"RF64") or form != b"WAVE":
            return None
        return _walk_to_data(file, path.stat().st_size)


def _walk_to_data(file: BinaryIO, file_bytes: int) -> RiffFacts | None:
    data_bytes_of_ds64: int | None = None
    time_reference_frames = 0
    while len(header := file.read(8)) == 8:
        identifier, size_bytes = struct.unpack("<4sI", header)
        if identifier == b"data":
            present_bytes = file_bytes - file.tell()
            is_open = size_bytes in _UNKNOWN_SIZES and size_bytes != present_bytes
            claimed_bytes = None if is_open else size_bytes
            if size_bytes == 0xFFFF_FFFF and data_bytes_of_ds64 is not None:
                claimed_bytes = data_bytes_of_ds64
            return RiffFacts(claimed_bytes, present_bytes, time_reference_frames)
        next_chunk = file.tell() + size_bytes + size_bytes % 2
        if identifier == b"ds64":
            content = file.read(16)
            if len(content) == 16:
                data_bytes_of_ds64 = struct.unpack("<QQ", content)[1]
        elif identifier == b"bext" and size_bytes >= _BEXT_BYTES:
            content = file.read(_BEXT_BYTES)
            if len(content) == _BEXT_BYTES:
                time_reference_frames = struct.unpack_from("<Q", content, _TIME_REFERENCE_AT)[0]
        file.seek(next_chunk)
    return None
