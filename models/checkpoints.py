"""Weights on disk: safetensors files, checked against their card before they are believed.

Nothing here can run code that a file brings along: safetensors holds numbers only, the
architecture is one of :data:`ARCHITECTURES`, and pickled checkpoints (``.th``, ``.pt``, ``.ckpt``)
are refused. A file is read once; what was hashed is what is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from models.cards import ModelCard, write_card
from models.demucs import Demucs, DemucsConfig
from models.errors import CheckpointError
from models.spectral import SpectralConfig, SpectralUNet

__all__ = [
    "ARCHITECTURES",
    "Config",
    "Network",
    "architecture_of",
    "build_network",
    "load_network",
    "save_checkpoint",
]

Config = DemucsConfig | SpectralConfig
Network = Demucs | SpectralUNet

# The networks that a card can ask for. A card's config is checked by the config's own class.
ARCHITECTURES: dict[str, tuple[type[Config], Callable[[Any], Network]]] = {
    "demucs": (DemucsConfig, Demucs),
    "spectral": (SpectralConfig, SpectralUNet),
}

MAX_LAYERS = 16
MAX_PARAMETERS = 1_000_000_000
MAX_HEADER_BYTES = 10_000_000
DTYPES = {"float16": torch.float16, "float32": torch.float32}
SAFETENSORS_DTYPES = {"F16": torch.float16, "F32": torch.float32}


def load_network(card: ModelCard) -> Network:
    """Build a card's network and fill it with its weights.

    Returns
    -------
    Demucs or SpectralUNet
        float32, on the processor, in evaluation mode.

    Raises
    ------
    CheckpointError
        The weights are missing, are not safetensors, do not have the recorded hash, do not fit
        the config (missing, surplus or misshapen tensors), or hold NaN or infinity. One line.
    """
    expected = _expected_shapes(card)
    content = _read_weights(card, expected)
    _check_header(card.weights_path, content, expected, DTYPES[card.weights_dtype])
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.weights_sha256:
        raise CheckpointError(
            f"{card.weights_path} is not the file that its card describes (SHA-256 {digest[:12]}…"
            f" instead of {card.weights_sha256[:12]}…); get it again"
        )
    try:
        state = parse_safetensors(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{card.weights_path} is damaged: {error}; get it again") from None
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{card.weights_path} holds numbers that are not finite, in {key}; get it again"
            )
    network = build_network(card)
    # Not strict: counters, which are not stored, matter to training only. The names were compared.
    network.load_state_dict({key: t.float() for key, t in state.items()}, strict=False)
    network.eval().requires_grad_(False)
    return network


def save_checkpoint(card: ModelCard, state: Mapping[str, Tensor], folder: Path) -> ModelCard:
    """Write ``NAME.safetensors`` and ``NAME.json``; the card as written, with the weights' hash.

    `state` is stored in the card's ``weights_dtype``. Each file appears under its name only when
    it is complete; the card, which names the weights' hash, comes last.
    """
    dtype = DTYPES[card.weights_dtype]
    content = format_safetensors(
        {key: t.to(dtype).contiguous() for key, t in state.items() if t.is_floating_point()}
    )
    weights_path = folder / f"{card.name}.safetensors"
    written = replace(
        card, weights_path=weights_path, weights_sha256=hashlib.sha256(content).hexdigest()
    )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = weights_path.with_name(weights_path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(weights_path)
    write_card(written, folder / f"{card.name}.json")
    return written


def architecture_of(config: Config) -> str:
    """Name the architecture that a config belongs to."""
    return next(name for name, (kind, _) in ARCHITECTURES.items() if isinstance(config, kind))


def build_network(card: ModelCard) -> Network:
    """Build a card's network, weights random; ``CheckpointError`` if the card is impossible."""
    if card.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"model {card.name!r} has the architecture {card.architecture!r}, which this version"
            f" does not know (it knows: {known}); a newer stembridge may"
        )
    config_class, network_class = ARCHITECTURES[card.architecture]
    try:
        config = config_class.from_dict(card.config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the card of model {card.name!r} is wrong: {error}") from None
    # Layers are created one by one; the width is checked later, when it costs nothing.
    if max(config.depth, config.lstm_layers) > MAX_LAYERS:
        raise CheckpointError(
            f"the card of model {card.name!r} is wrong: depth {config.depth}, lstm_layers"
            f" {config.lstm_layers}; the limit is {MAX_LAYERS}"
        )
    told = (card.stems, card.sample_rate_hz, card.audio_channels)
    if told != (config.sources, config.sample_rate_hz, config.audio_channels):
        raise CheckpointError(
            f"the card of model {card.name!r} contradicts itself: stems, sample rate or channels"
            " differ between the card and its config"
        )
    return network_class(config)


def _expected_shapes(card: ModelCard) -> dict[str, torch.Size]:
    """Names and shapes of a card's tensors, without allocating any."""
    try:
        with torch.device("meta"):
            state = build_network(card).state_dict()
        shapes = {key: t.shape for key, t in state.items() if t.is_floating_point()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the card of model {card.name!r} is wrong: {reason}") from None
    parameters = sum(shape.numel() for shape in shapes.values())
    if parameters > MAX_PARAMETERS:
        raise CheckpointError(
            f"the card of model {card.name!r} asks for {parameters:.2g} parameters; the limit is"
            f" {MAX_PARAMETERS:.0e}"
        )
    return shapes


def _read_weights(card: ModelCard, expected: Mapping[str, torch.Size]) -> bytes:
    """Read the file's bytes, of which there are no more than the card's network needs."""
    path = card.weights_path
    parameters = sum(shape.numel() for shape in expected.values())
    limit_bytes = 8 + MAX_HEADER_BYTES + parameters * DTYPES[card.weights_dtype].itemsize
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights {path}: {error.strerror}; get the model again"
        ) from None
    # Zip archives and bare pickles are what torch.save writes; 80 may also begin the length that
    # a safetensors file opens with, and then an opening brace follows that length.
    bare_pickle = content.startswith(b"\x80") and content[8:9] != b"{"
    if content.startswith(b"PK\x03\x04") or bare_pickle:
        raise CheckpointError(
            f"{path} is a pickled checkpoint, which could run any code when read; it must be"
            " converted to safetensors"
        )
    if len(content) > limit_bytes:
        raise CheckpointError(f"{path} is larger than the network that its card describes")
    return content


def _check_header(
    path: Path, content: bytes, expected: Mapping[str, torch.Size], dtype: torch.dtype
) -> None:
    """Compare the tensors that a safetensors file announces with those that are expected."""
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= header_bytes <= min(len(content) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is not a safetensors file, or is cut short; get it again")
    try:
        header: Any = json.loads(content[8 : 8 + header_bytes])
        announced = {
            key: (torch.Size(entry["shape"]), SAFETENSORS_DTYPES.get(entry["dtype"]))
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError):
        raise CheckpointError(f"{path} is not a safetensors file; get it again") from None
    if missing := sorted(set(expected) - set(announced)):
        raise CheckpointError(f"{path} lacks {_some(missing)}; it is not what its card describes")
    if surplus := sorted(set(announced) - set(expected)):
        raise CheckpointError(
            f"{path} holds {_some(surplus)} too many; it is not what its card describes"
        )
    for key, (shape, stored_dtype) in announced.items():
        if shape != expected[key]:
            raise CheckpointError(
                f"{path} has {key} as {_times(shape)} instead of {_times(expected[key])}; it is"
                " not what its card describes"
            )
        if stored_dtype != dtype:
            raise CheckpointError(
                f"{path} stores {key} as {header[key]['dtype']!r}, where its card says {dtype}"
            )


def _some(names: list[str]) -> str:
    """Show a few names out of a list, which may be long or hostile."""
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _times(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "one number"
