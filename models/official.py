"""Public Demucs checkpoints, in every format they were published in, and their bags.

==============  ==================================================================================
kind            what it is
==============  ==================================================================================
``th``          versions 3 and 4: ``torch.save`` of class, arguments and float16 state, named
                ``SIGNATURE-SHA8.th``
``state-dict``  version 2: a bare float32 state dict, ``NAME-SHA8.th``
``hub``         safetensors with class and arguments as JSON in the metadata
``torchaudio``  ``hdemucs_high_*.pt``: a bare state dict with torchaudio's names
==============  ==================================================================================

No code of a file runs, and no class that it names is imported: pickles go through
:mod:`models.pickles`, the rest is data. What a file claims is judged by the network that its
arguments describe, built without memory, before its numbers are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import pickles
from models.bags import Bag, read_bag
from models.cards import MAX_STEMS, NAME_PATTERN
from models.checkpoints import Config, check_tensors, expected_shapes
from models.demucs import DemucsConfig
from models.errors import CheckpointError
from models.hdemucs import HDemucsConfig
from models.htdemucs import HTDemucsConfig
from models.statedicts import match_names, recognise
from models.tensor_files import TensorFile, is_finite

__all__ = ["Bag", "OfficialCheckpoint", "read_bag", "read_official"]

MAX_METADATA_CHARACTERS = 1_000_000

# The members of mdx_q and mdx_extra_q.
QUANTIZED_SIGNATURES = re.compile(
    "6b9c2ca1|b72baf4e|42e558d4|305bc58f|14fc6a69|464b36d7|7fd6ef75|83fc094f"
)
PUBLISHED_NAME = re.compile(r"(?P<signature>.+)-(?P<sha256>[0-9a-f]{8})")
PublicConfig = DemucsConfig | HDemucsConfig | HTDemucsConfig
CONFIGS: dict[str, type[PublicConfig]] = {
    "demucs": DemucsConfig,
    "hdemucs": HDemucsConfig,
    "htdemucs": HTDemucsConfig,
}
HUB_CLASSES = {
    name: stand_in.architecture
    for name, stand_in in pickles.STAND_INS.items()
    if isinstance(stand_in, pickles.ClassName)
}


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A checkpoint that was read and found whole."""

    architecture: str  # "demucs", "hdemucs" or "htdemucs"
    config: PublicConfig
    state: dict[str, Tensor]  # by our networks' names; float16 or float32, as stored
    sha256: str  # of the file
    kind: str  # see the module's head


def read_official(path: Path) -> OfficialCheckpoint:
    """Read a public checkpoint of any kind.

    The numbers of ``th``, ``state-dict`` and ``torchaudio`` files are mapped from the file where
    its layout allows (all but ``torch.save``'s old one) and cost no memory until they are used;
    such a file must not be overwritten in place meanwhile.

    Raises
    ------
    CheckpointError
        The file cannot be read, does not have the hash that its name carries, is damaged, needs
        code or a network that is not known, does not fit the network that it describes, or holds
        NaN or infinity. One line, with the file.
    """
    with pickles.steady(path) as status:
        try:
            return _read(path, status.st_size)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _read(path: Path, size_bytes: int) -> OfficialCheckpoint:
    """Tell the kinds of files apart by how they begin."""
    if QUANTIZED_SIGNATURES.fullmatch(_signature(path)):
        raise CheckpointError(f"{path} {pickles.QUANTIZED}")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path} is empty; get it again")
    if start.startswith(b"\x1f\x8b"):
        raise CheckpointError(
            f"{path} is compressed, as version 1 of Demucs was published, which is not read; take a"
            " later version"
        )
    # The length that a safetensors file opens with may look like a pickle; the brace decides.
    if start[8:] == b"{":
        return _read_hub(path)
    if not pickles.is_pickled(start):
        raise CheckpointError(f"{path} is not a Demucs checkpoint of any known kind")
    sha256 = _hash_file(path)
    _check_hash(path, sha256)
    return _read_pickled(path, sha256, size_bytes)


def _read_pickled(path: Path, sha256: str, size_bytes: int) -> OfficialCheckpoint:
    """Judge the outline of a file of ``torch.save``, then read its numbers."""
    outline = pickles.outline(path)
    if not isinstance(outline, dict):
        raise CheckpointError(f"{path} is not a Demucs checkpoint: it holds no dictionary")
    is_package = "klass" in outline
    stored = _tensors_of(path, outline.get("state") if is_package else outline)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    if is_package:
        klass = outline["klass"]
        if not isinstance(klass, pickles.ClassName):
            raise CheckpointError(f"{path} does not say which network it is for")
        kind, architecture = "th", klass.architecture
        config = _config(path, architecture, outline.get("args", ()), outline.get("kwargs", {}))
        names = {name: name for name in shapes}
    else:
        try:
            found = recognise(shapes)
        except ValueError as error:
            raise CheckpointError(f"{path} is not a Demucs checkpoint: {error}") from None
        kind, architecture, names = found.kind, found.architecture, found.names
        config = _config(path, architecture, (), found.arguments)
    expected = _expected(path, config)
    names = match_names(names, expected)
    check_tensors(
        path,
        {name: (shapes[old], stored[old].dtype) for name, old in names.items()},
        expected,
        source="its arguments describe",
    )
    # A tensor may be a view of a larger storage, which is what takes the memory.
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in stored.values()}
    if max(sum(storages.values()), sum(t.nbytes for t in stored.values())) > size_bytes:
        raise CheckpointError(f"{path} claims to hold more numbers than its own size")
    del outline, stored

    package = pickles.load(path)
    loaded = _tensors_of(path, package["state"] if is_package else package)
    state = {name: loaded[old].detach() for name, old in names.items()}
    for name, tensor in state.items():
        if tensor.shape != expected[name] or tensor.device.type != "cpu" or tensor.is_neg():
            raise CheckpointError(f"{path} holds {name[:60]!r} in a form that is not known")
    _check_finite(path, state)
    return OfficialCheckpoint(architecture, config, state, sha256, kind)


def _read_hub(path: Path) -> OfficialCheckpoint:
    """Read a safetensors file, its numbers last."""
    with path.open("rb") as raw:
        file = TensorFile(raw, path)
        header = file.read_header()
        metadata = header.metadata
        if "structure" in metadata or "__quantized" in header.entries:
            raise CheckpointError(f"{path} {pickles.QUANTIZED}")
        if not {"klass", "args", "kwargs"} <= metadata.keys():
            raise CheckpointError(
                f"{path} does not say which network it is for (no class in its metadata); a model"
                " of ours needs its card (.json) beside it"
            )
        architecture = HUB_CLASSES.get(metadata["klass"])
        if architecture is None:
            raise CheckpointError(
                f"{path} is for {metadata['klass'][:60]!r}, which is not a network that is known"
            )
        config = _config(
            path, architecture, _json(path, metadata["args"]), _json(path, metadata["kwargs"])
        )
        expected = _expected(path, config)
        names = match_names({name: name for name in header.entries}, expected)
        announced = {
            name: (header.entries[old].shape, header.entries[old].dtype)
            for name, old in names.items()
        }
        check_tensors(path, announced, expected, source="its arguments describe")
        loaded = dict(file.tensors(header))
        sha256 = file.sha256()
    _check_hash(path, sha256)
    state = {name: loaded[old] for name, old in names.items()}
    _check_finite(path, state)
    return OfficialCheckpoint(architecture, config, state, sha256, "hub")


def _tensors_of(path: Path, state: Any) -> dict[str, Tensor]:
    """Make sure that a state dict is one."""
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} is not a Demucs checkpoint: it holds no weights")
    if "__quantized" in state:
        raise CheckpointError(f"{path} {pickles.QUANTIZED}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} holds more than weights where weights should be")
    return state


def _config(path: Path, architecture: str, args: Any, kwargs: Any) -> PublicConfig:
    """Check the arguments of the reference's constructor, and make them a config."""
    try:
        args, kwargs = _plain(args), _plain(kwargs)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError("the arguments are not a list and a dictionary")  # noqa: TRY004, TRY301
        if len(args) > 1 or (args and "sources" in kwargs):
            raise ValueError("only the stems' names can be given by position")  # noqa: TRY301
        if args:
            kwargs = {"sources": args[0], **kwargs}
        _check_sources(kwargs.get("sources"))
        return CONFIGS[architecture].from_reference(kwargs)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"{path} describes a network that cannot be built: {reason}"
        ) from None


def _check_sources(sources: Any) -> None:
    """Stems become names of files and tracks."""
    if not isinstance(sources, list) or not 1 <= len(sources) <= MAX_STEMS:
        raise ValueError(f"sources must be a list of 1 to {MAX_STEMS} names")
    if not all(isinstance(name, str) and NAME_PATTERN.fullmatch(name) for name in sources):
        raise ValueError("sources must be of letters, digits, dots, dashes and underscores")
    if len(set(sources)) != len(sources):
        raise ValueError("sources must be distinct")


def _plain(value: Any, depth: int = 0) -> Any:
    """Copy arguments, tuples as lists; ``ValueError`` for what is not a plain, moderate value."""
    if value is None or isinstance(value, bool | Fraction):
        return value
    if isinstance(value, str) and len(value) <= 100:
        return value
    if isinstance(value, int | float) and -1e12 <= value <= 1e12:
        return value
    if depth < 3 and isinstance(value, list | tuple) and len(value) <= 100:
        return [_plain(item, depth + 1) for item in value]
    if depth < 3 and isinstance(value, dict) and len(value) <= 200:
        if value.get("_type") == "fraction":
            return _json_fraction(value)
        if all(isinstance(name, str) and len(name) <= 100 for name in value):
            return {name: _plain(item, depth + 1) for name, item in value.items()}
    raise ValueError(f"an argument is no plain value, or too large ({type(value).__name__})")


def _json_fraction(value: Mapping[str, Any]) -> Fraction:
    parts: list[Any] = [value.get("numerator"), value.get("denominator")]
    if not all(type(part) is int and 0 <= part < 10**pickles.MAX_DIGITS for part in parts):
        raise ValueError("a fraction is not made of two moderate numbers")
    return Fraction(*parts)


def _json(path: Path, text: str) -> Any:
    try:
        if len(text) > MAX_METADATA_CHARACTERS:
            raise ValueError  # noqa: TRY301
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} has arguments that are not JSON; get it again") from None


def _expected(path: Path, config: Config) -> dict[str, torch.Size]:
    try:
        return expected_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{path} describes a network that cannot be built: {error}") from None


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise CheckpointError(
                f"{path} holds numbers that are not finite, in {name}; get it again"
            )


def _signature(path: Path) -> str:
    told = PUBLISHED_NAME.fullmatch(path.stem)
    return told["signature"] if told else path.stem


def _check_hash(path: Path, sha256: str) -> None:
    """Compare with the start of the hash that a published name ends in."""
    told = PUBLISHED_NAME.fullmatch(path.stem)
    if told and not sha256.startswith(told["sha256"]):
        raise CheckpointError(
            f"{path} is not the file that its name tells (SHA-256 {sha256[:8]}… instead of"
            f" {told['sha256']}…); get it again"
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
