"""Files of ``torch.save``, read without running anything that they name.

Three locks, one behind the other:

1. The container. A zip archive must be plain: nothing compressed, no entry twice, no more bytes
   than the file has, one small pickle. The older layout (pickles, then bare numbers) must begin
   as ``torch.save`` begins it, and is read where it holds a bare state dict: with a class it
   would also hold the class' source text. The still older tar layout is refused.
2. The pickle's instructions are listed, not executed, and only those and only the names that
   Demucs checkpoints need are let through (:data:`NAMES`).
3. ``torch.load(weights_only=True)``, in which every such name that is not torch's own is bound to
   a stand-in from this file. No module that a file names is ever imported, and the stand-ins do
   nothing but hold their arguments to account.

:func:`outline` gives the tensors' names, shapes and dtypes on the meta device, so that they can
be judged before memory is taken; :func:`load` gives the numbers. Zip archives are mapped into
memory, so their numbers cost none until they are touched.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import safe_globals, skip_data

from models.errors import CheckpointError

__all__ = ["QUANTIZED", "ClassName", "is_pickled", "load", "outline", "steady"]

ZIP_START = b"PK\x03\x04"
OLD_START = (
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # torch.save's magic number
)
OLD_VERSION = 1001  # of the layout
MAX_PICKLE_BYTES = 10_000_000
MAX_TEXT_CHARACTERS = 100_000
MAX_ENTRIES = 20_000
MAX_DIGITS = 9

# With these two a text of 10 000 characters keeps _codecs.encode busy for a minute.
SLOW_CODECS = re.compile("punycode|idna", re.IGNORECASE)

QUANTIZED = (
    "holds quantized weights, which are packed in a way that only a package under a"
    " non-commercial licence unpacks; take the model without _q (mdx_extra, mdx)"
)

# Instructions of the second pickle protocol that plain values, tensors and references need.
INSTRUCTIONS = re.compile(
    r"PROTO|MARK|STOP|GLOBAL|REDUCE|NEWOBJ|BUILD|BINPERSID|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1"
    r"|BINFLOAT|BINUNICODE|SHORT_BINSTRING|(EMPTY_)?TUPLE|TUPLE[123]|EMPTY_(LIST|DICT|SET)|APPENDS?"
    r"|SETITEMS?|(LONG_)?BIN(GET|PUT)"
)


@dataclass(frozen=True)
class ClassName:
    """Stands where a pickle refers to a network's class; it cannot be called."""

    architecture: str


class _NumberType:
    """Stands for numpy's dtype, of plain numbers only."""

    def __init__(self, code: object, *_: object) -> None:
        if not re.fullmatch(r"[<>|=]?[bifu][1248]", str(code)):
            raise ValueError("a number format that no checkpoint needs")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which nobody asks for."""


def _number(kind: object, *_: object) -> None:
    """Stand for a numpy number, as scores are written; its value is not needed."""
    if type(kind) is not _NumberType:
        raise ValueError("a number without a number format")


def _fraction(*parts: object) -> Fraction:
    """Build a fraction from at most nine digits each: larger ones can take minutes."""
    match = re.fullmatch(
        rf"([0-9]{{1,{MAX_DIGITS}}})(?:/([0-9]{{1,{MAX_DIGITS}}}))?", "/".join(map(str, parts))
    )
    if match is None or int(match[2] or 1) == 0:
        raise ValueError("a fraction that no checkpoint needs")
    return Fraction(int(match[1]), int(match[2] or 1))


STAND_INS: dict[str, Any] = {
    "demucs.demucs.Demucs": ClassName("demucs"),
    "demucs.hdemucs.HDemucs": ClassName("hdemucs"),
    "demucs.wdemucs.WDemucs": ClassName("hdemucs"),  # its former name
    "demucs.htdemucs.HTDemucs": ClassName("htdemucs"),
    "fractions.Fraction": _fraction,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
NAMES = frozenset(STAND_INS) | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.HalfStorage",
    "torch.FloatStorage",
    "_codecs.encode",  # bytes, as the second protocol writes them
}

# torch's list of safe names belongs to the whole process.
_stand_ins_in_place = threading.Lock()


def is_pickled(start: bytes) -> bool:
    """Whether a file that starts so may be one of ``torch.save``."""
    return start.startswith((ZIP_START, b"\x80"))


def outline(path: Path) -> Any:
    """Read what a file holds, its tensors on the meta device.

    Raises
    ------
    CheckpointError
        The file is not one of ``torch.save``, is damaged, or asks for what no Demucs checkpoint
        needs. One line.
    """
    with _opened(path) as file:
        start = file.read(len(OLD_START))
        if start.startswith(ZIP_START):
            _check_zip(path, file)
            file.seek(0)
            return _torch_load(path, file, map_location="meta")
        if start != OLD_START:
            raise CheckpointError(
                f"{path} is not a Demucs checkpoint that is known: neither a zip archive nor a"
                " file of older torch.save"
            )
        references = _check_old(path, file)
        file.seek(0)
        with skip_data():
            package = _torch_load(path, file, map_location="meta")
        # Other tensors, which nobody would look at, could claim any amount of memory.
        found = _count_tensors(package)
        if found != references:
            raise CheckpointError(f"{path} refers to {references} tensors but holds {found}")
        return package


def load(path: Path) -> Any:
    """Read what a file holds, with its numbers; for files whose :func:`outline` was judged."""
    with _opened(path) as file:
        is_zip = file.read(4) == ZIP_START
        file.seek(0)
        if is_zip:
            return _torch_load(path, path, mmap=True)
        return _torch_load(path, file)


@contextlib.contextmanager
def steady(path: Path) -> Iterator[os.stat_result]:
    """Make sure that a file is the same one, unchanged, from the block's start to its end.

    A file is opened several times while it is judged; its device, inode, size and time of change
    must not move meanwhile. ``CheckpointError`` if they do, or if it is not a regular file.
    """
    before = _stat(path)
    yield before
    after = _stat(path)
    if any(
        getattr(before, name) != getattr(after, name)
        for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    ):
        raise CheckpointError(f"{path} changed while it was read; try again")


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path}: {reason}") from None
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} is not a file")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    _stat(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield file


def _torch_load(path: Path, source: Path | BinaryIO, **options: Any) -> Any:
    allowed: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with _stand_ins_in_place, safe_globals(allowed):
        try:
            return torch.load(source, **{"map_location": "cpu", **options}, weights_only=True)
        # A damaged pickle fails in any way at all: a key that is missing, a text that is a list.
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            if len(reason) > 100 or "weights_only" in reason.lower():
                reason = type(error).__name__
            raise CheckpointError(
                f"{path} is damaged or not a Demucs checkpoint ({reason}); get it again"
            ) from None


def _check_zip(path: Path, file: BinaryIO) -> None:
    """Look through a zip archive's directory and its pickle."""
    size_bytes = os.fstat(file.fileno()).st_size
    content = b""
    try:
        with zipfile.ZipFile(file) as archive:
            fault = next(_zip_faults(archive, size_bytes), None)
            if fault is None:
                name = next(name for name in archive.namelist() if name.endswith(".pkl"))
                content = archive.read(name)
    # zipfile lets through what its own parsing runs into: struct.error, NotImplementedError, ...
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({type(error).__name__}); get it again"
        ) from None
    if fault is not None:
        raise CheckpointError(f"{path} {fault}")
    _check_instructions(path, io.BytesIO(content))


def _zip_faults(archive: zipfile.ZipFile, size_bytes: int) -> Iterator[str]:
    """Tell what is wrong with an archive's directory, the first thing first."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(entries) > MAX_ENTRIES or len(set(names)) != len(names) or archive.comment:
        yield "has a directory that torch.save does not write"
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ):
        yield "is compressed, which torch.save never does"
    if sum(entry.file_size for entry in entries) > size_bytes:
        yield "claims to hold more than its own size"
    if len(pickles) != 1 or not re.fullmatch(r"[^/]+/data\.pkl", pickles[0].filename):
        yield "is not a Demucs checkpoint: it has no data.pkl, or has program code beside it"
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        yield "has a description that is too large"


def _check_old(path: Path, file: BinaryIO) -> int:
    """Look through the five pickles of the layout before zip; how many tensors they refer to."""
    size_bytes = os.fstat(file.fileno()).st_size
    file.seek(len(OLD_START))
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    # after the magic number: version, machine, the package itself, the order of the numbers
    return sum(_check_instructions(path, stream, size_bytes) for _ in range(4))


def _check_instructions(path: Path, stream: io.BytesIO, old_size_bytes: int | None = None) -> int:
    """List a pickle's instructions up to its end; how often it refers to stored numbers.

    In the old layout, whose file has `old_size_bytes`, torch takes memory for each storage as it
    meets it.
    """
    references = 0
    instructions = pickletools.genops(stream)
    while True:
        try:
            instruction, argument, _ = next(instructions)
        except StopIteration:
            return references
        # ValueError for the most part, but what the bytes hold is the file's choice
        except Exception:
            raise CheckpointError(
                f"{path} is damaged or cut short, or its description is too large; get it again"
            ) from None
        fault = _instruction_fault(instruction.name, argument)
        if fault is None and old_size_bytes is not None:
            fault = _old_fault(instruction.name, argument, old_size_bytes)
        if fault is not None:
            raise CheckpointError(f"{path} {fault}")
        references += instruction.name == "BINPERSID"


def _old_fault(instruction: str, argument: Any, size_bytes: int) -> str | None:
    """Tell what speaks against an instruction in a bare state dict of the old layout."""
    # All its numbers are sizes, strides, offsets and the format's own version.
    if isinstance(argument, int) and argument > max(size_bytes, OLD_VERSION):
        return "claims to hold more numbers than its own size"
    if instruction == "GLOBAL" and isinstance(STAND_INS.get(argument.replace(" ", ".")), ClassName):
        return (
            "carries its network's program code, as torch.save did before 1.6; no published model"
            " needs that; get the model anew"
        )
    return None


def _instruction_fault(instruction: str, argument: Any) -> str | None:
    """Tell what speaks against an instruction."""
    if not INSTRUCTIONS.fullmatch(instruction) or (instruction == "PROTO" and argument != 2):
        return (
            f"uses the pickle instruction {instruction}, which no Demucs checkpoint needs; nothing"
            " of it was run"
        )
    if instruction in ("BINUNICODE", "SHORT_BINSTRING"):
        if len(argument) > MAX_TEXT_CHARACTERS:
            return "holds a text that is too long"
        if SLOW_CODECS.search(str(argument)):
            return "asks for a text encoding that no Demucs checkpoint needs"
    if instruction == "GLOBAL":
        name = argument.replace(" ", ".")
        if name.startswith("diffq."):
            return QUANTIZED
        if name not in NAMES:
            return (
                f"refers to {name[:60]!r}, which no Demucs checkpoint that is known needs; nothing"
                " of it was run"
            )
    return None


def _count_tensors(package: Any) -> int:
    """Count the tensors of a state dict."""
    values = package.values() if isinstance(package, dict) else ()
    return sum(isinstance(value, Tensor) for value in values)
