"""Files of named tensors (safetensors): read and written in one pass, one tensor at a time.

The layout is that of https://github.com/huggingface/safetensors: eight bytes of header length, a
JSON header, the tensors' numbers. Reading by hand costs little and gives two things that a mapped
file does not: every byte is hashed and used from the same read, so what was hashed is what is
loaded, and no more than one tensor is held twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models.errors import CheckpointError

__all__ = ["MAX_HEADER_BYTES", "Entry", "Header", "TensorFile", "is_finite", "write_tensors"]

MAX_HEADER_BYTES = 10_000_000
DTYPES = {"F16": torch.float16, "F32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """What the header tells of one tensor."""

    shape: torch.Size
    dtype: torch.dtype | None  # None: one that we do not use
    dtype_name: str  # as it is in the file
    offsets: tuple[int, int]  # of its bytes, from the end of the header


@dataclass(frozen=True)
class Header:
    """What a file announces, not yet compared with anything."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


class TensorFile:
    """A safetensors file that is read from its start to its end.

    Call :meth:`read_header`, then iterate over :meth:`tensors`, then ask for :meth:`sha256`.

    Parameters
    ----------
    file : BinaryIO
        Open at its start, unbuffered or not.
    path : Path
        Its name, for messages.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._hash = hashlib.sha256()
        self._size_bytes = os.fstat(file.fileno()).st_size
        self._data_bytes = 0

    def read_header(self) -> Header:
        """Read the header; ``CheckpointError`` where it is none."""
        prefix = self._file.read(8)
        length = int.from_bytes(prefix, "little")
        room = self._size_bytes - 8
        if len(prefix) < 8 or not 2 <= length <= min(room, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{self._path} is not a safetensors file, or is cut short; get it again"
            )
        text = self._file.read(length)
        self._hash.update(prefix)
        self._hash.update(text)
        self._data_bytes = room - length
        try:
            values: dict[str, Any] = json.loads(text)
            metadata = {str(k): str(v) for k, v in values.pop("__metadata__", {}).items()}
            entries = {name: _entry(value) for name, value in values.items()}
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,  # sizes beyond 64 bits
            RuntimeError,  # RecursionError among them
        ):
            raise CheckpointError(f"{self._path} is not a safetensors file; get it again") from None
        return Header(entries, metadata)

    def tensors(self, header: Header) -> Iterator[tuple[str, Tensor]]:
        """Read the tensors in the file's order, each in its stored dtype, into memory of its own.

        ``CheckpointError`` if they overlap, leave gaps, or end before or after the file does;
        that is known before the first is read.
        """
        order = sorted(header.entries.items(), key=lambda item: item[1].offsets)
        position = 0
        for name, entry in order:
            size = entry.shape.numel() * (entry.dtype.itemsize if entry.dtype else 0)
            if entry.dtype is None or entry.offsets != (position, position + size):
                raise CheckpointError(
                    f"{self._path} is damaged: {name[:60]!r} is not where it should be; get it"
                    " again"
                )
            position += size
        if position != self._data_bytes:
            raise CheckpointError(
                f"{self._path} is damaged: it holds {self._data_bytes} bytes of numbers instead"
                f" of {position}; get it again"
            )
        for name, entry in order:
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            view = _bytes_of(tensor)
            filled = 0
            while filled < len(view):
                count = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError(f"{self._path} became shorter while it was read")
                filled += count
            self._hash.update(view)
            yield name, tensor

    def sha256(self) -> str:
        """Return the hash of all that was read: of the whole file, after the last tensor."""
        return self._hash.hexdigest()


def write_tensors(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Write tensors, converted one at a time, and return the file's SHA-256.

    The same tensors always give the same bytes. The file appears under its name only when it is
    complete; nothing is left of it where writing fails (``OSError``).
    """
    header: dict[str, Any] = {}
    position = 0
    for name in sorted(state):
        size = state[name].numel() * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(state[name].shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the numbers aligned
    digest = hashlib.sha256()
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            for part in (len(text).to_bytes(8, "little"), text):
                file.write(part)
                digest.update(part)
            for name in sorted(state):
                numbers = _bytes_of(state[name].detach().to("cpu", dtype).contiguous())
                file.write(numbers)
                digest.update(numbers)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, found without a copy of the tensor."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # NaN comes through
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _entry(value: Any) -> Entry:
    start, end = value["data_offsets"]
    dtype_name = value["dtype"]
    sizes = value["shape"]
    if not all(type(number) is int for number in (start, end, *sizes)):
        raise TypeError
    if any(size < 0 for size in sizes) or not isinstance(dtype_name, str):
        raise ValueError
    return Entry(torch.Size(sizes), DTYPES.get(dtype_name), dtype_name, (start, end))


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a contiguous tensor's memory; valid as long as the tensor is."""
    if tensor.numel() == 0:  # which memoryview cannot cast
        return memoryview(b"")
    numbers: Any = tensor.reshape(-1).numpy()
    return memoryview(numbers).cast("B")
