"""Weights on disk: safetensors files, checked against their card before they are believed.

Nothing here can run code that a file brings along: safetensors holds numbers only, the
architecture is one of :data:`ARCHITECTURES`, and pickled checkpoints (``.th``, ``.pt``, ``.ckpt``)
are refused (those that others published are read by :mod:`models.official`). A file is read once,
one tensor at a time: what was hashed is what is loaded, and beside the network there is never
more in memory than one tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from models.cards import ModelCard, write_card
from models.demucs import Demucs, DemucsConfig
from models.errors import CheckpointError
from models.hdemucs import HDemucs, HDemucsConfig
from models.htdemucs import HTDemucs, HTDemucsConfig
from models.hybrid import DecoderLayer, EncoderLayer
from models.spectral import SpectralConfig, SpectralUNet
from models.tensor_files import MAX_HEADER_BYTES, TensorFile, is_finite, write_tensors
from models.widening import may_stay_half

__all__ = [
    "ARCHITECTURES",
    "Config",
    "Network",
    "architecture_of",
    "build_network",
    "check_tensors",
    "expected_shapes",
    "load_network",
    "network_from_state",
    "save_checkpoint",
]

Config = DemucsConfig | HDemucsConfig | HTDemucsConfig | SpectralConfig
Network = Demucs | HDemucs | HTDemucs | SpectralUNet

# The networks that a card can ask for. A card's config is checked by the config's own class.
ARCHITECTURES: dict[str, tuple[type[Config], Callable[[Any], Network]]] = {
    "demucs": (DemucsConfig, Demucs),
    "hdemucs": (HDemucsConfig, HDemucs),
    "htdemucs": (HTDemucsConfig, HTDemucs),
    "spectral": (SpectralConfig, SpectralUNet),
}

CREATIONS = (torch.empty, torch.full, torch.ones, torch.zeros)
DRAWS = (init.normal_, init.uniform_, init.kaiming_uniform_)
MAX_LAYERS = 16
MAX_PARAMETERS = 1_000_000_000
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def load_network(card: ModelCard) -> Network:
    """Build a card's network and fill it with its weights.

    Returns
    -------
    Demucs, HDemucs, HTDemucs or SpectralUNet
        float32, on the processor, in evaluation mode.

    Raises
    ------
    CheckpointError
        The weights are missing, are not safetensors, do not have the recorded hash, do not fit
        the config (missing, surplus or misshapen tensors), or hold NaN or infinity. One line.
    """
    config = _config_of(card)
    try:
        expected = expected_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"the card of model {card.name!r} is wrong: {error}") from None
    path, dtype = card.weights_path, DTYPES[card.weights_dtype]
    limit_bytes = 8 + MAX_HEADER_BYTES + _parameters(expected) * dtype.itemsize
    state: dict[str, Tensor] = {}
    not_finite = None
    try:
        # Unbuffered: tensors are read straight into their own memory.
        with path.open("rb", buffering=0) as raw:
            _refuse_strangers(path, raw.read(9), os.fstat(raw.fileno()).st_size, limit_bytes)
            raw.seek(0)
            file = TensorFile(raw, path)
            header = file.read_header()
            announced = {name: (e.shape, e.dtype) for name, e in header.entries.items()}
            check_tensors(path, announced, expected, dtype, source="its card describes")
            for name, tensor in file.tensors(header):
                if not is_finite(tensor):
                    not_finite = not_finite or name
                state[name] = tensor.float()
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights {path}: {error.strerror}; get the model again"
        ) from None
    if (sha256 := file.sha256()) != card.weights_sha256:
        raise CheckpointError(
            f"{path} is not the file that its card describes (SHA-256 {sha256[:12]}…"
            f" instead of {card.weights_sha256[:12]}…); get it again"
        )
    if not_finite:
        raise CheckpointError(
            f"{path} holds numbers that are not finite, in {not_finite}; get it again"
        )
    return network_from_state(config, state)


def network_from_state(config: Config, state: Mapping[str, Tensor]) -> Network:
    """Build a network around weights that are there already.

    Parameters
    ----------
    config : Config
        Of the network.
    state : mapping of str to Tensor
        All of the network's weights, as :func:`expected_shapes` names and shapes them. float32
        tensors become the network's own without a copy; others are converted one by one, but for
        large ones that their layers widen themselves (:mod:`models.widening`).

    Returns
    -------
    Network
        On the processor, in evaluation mode; it computes in float32.

    Raises
    ------
    ValueError, RuntimeError
        A weight is missing or has another shape.
    """
    network = _unfilled(config)
    # Not strict: counters, which are not stored, matter to training only. The names were compared.
    as_stored = may_stay_half(network)
    network.load_state_dict(
        {
            name: (tensor if name in as_stored else tensor.float()).contiguous()
            for name, tensor in state.items()
        },
        strict=False,
        assign=True,
    )
    if empty := [name for name, t in _tensors(network) if t.is_meta]:
        raise ValueError(f"the state lacks {', '.join(empty[:3])}")
    network.eval().requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, EncoderLayer | DecoderLayer):
            layer.lay_out_weights()
    return network


def save_checkpoint(card: ModelCard, state: Mapping[str, Tensor], folder: Path) -> ModelCard:
    """Write ``NAME.safetensors`` and ``NAME.json``; the card as written, with the weights' hash.

    `state` is stored in the card's ``weights_dtype``. Each file appears under its name only when
    it is complete; the card, which names the weights' hash, comes last. ``OSError`` where the
    disk does not take them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights_path = folder / f"{card.name}.safetensors"
    stored = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    sha256 = write_tensors(weights_path, stored, DTYPES[card.weights_dtype])
    written = replace(card, weights_path=weights_path, weights_sha256=sha256)
    write_card(written, folder / f"{card.name}.json")
    return written


def architecture_of(config: Config) -> str:
    """Name the architecture that a config belongs to."""
    return next(name for name, (kind, _) in ARCHITECTURES.items() if isinstance(config, kind))


def build_network(card: ModelCard) -> Network:
    """Build a card's network, weights random; ``CheckpointError`` if the card is impossible."""
    config = _config_of(card)
    return ARCHITECTURES[card.architecture][1](config)


def expected_shapes(config: Config) -> dict[str, torch.Size]:
    """Names and shapes of a network's weights, without allocating any.

    ``ValueError``, in one line, if the network cannot be built or would be too large.
    """
    # Layers are created one by one; the width is checked below, when it costs nothing.
    for name in ("depth", "lstm_layers", "dconv_depth", "t_layers"):
        layers = getattr(config, name, 0)
        if not isinstance(layers, int) or abs(layers) > MAX_LAYERS:
            raise ValueError(f"{name} {layers!r}; the limit is {MAX_LAYERS}")
    try:
        network = _unfilled(config)
    except Exception as error:  # torch's complaints about absurd sizes are of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(reason) from None
    total = sum(t.numel() for _, t in _tensors(network))
    if total > MAX_PARAMETERS:
        raise ValueError(f"it asks for {total:.2g} parameters; the limit is {MAX_PARAMETERS:.0e}")
    state = network.state_dict()
    return {name: tensor.shape for name, tensor in state.items() if tensor.is_floating_point()}


def check_tensors(
    path: Path,
    announced: Mapping[str, tuple[torch.Size, torch.dtype | None]],
    expected: Mapping[str, torch.Size],
    dtype: torch.dtype | None = None,
    *,
    source: str,
) -> None:
    """Compare the tensors that a file announces with those that its network needs.

    Parameters
    ----------
    path : Path
        For messages.
    announced : mapping
        Name → shape and dtype; None for a dtype that is not known here.
    expected : mapping
        Name → shape.
    dtype : torch.dtype, optional
        What all must be stored in; by default float16 or float32.
    source : str
        Where the expectation comes from: "its card describes".

    Raises
    ------
    CheckpointError
        The first difference found, in one line.
    """
    if missing := sorted(set(expected) - set(announced)):
        raise CheckpointError(f"{path} lacks {_some(missing)}; it is not what {source}")
    if surplus := sorted(set(announced) - set(expected)):
        raise CheckpointError(f"{path} holds {_some(surplus)} too many; it is not what {source}")
    for name, (shape, stored_dtype) in announced.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path} has {name} as {_times(shape)} instead of {_times(expected[name])}; it is"
                f" not what {source}"
            )
        if stored_dtype not in ((dtype,) if dtype else DTYPES.values()):
            wanted = dtype or " or ".join(map(str, DTYPES.values()))
            raise CheckpointError(
                f"{path} stores {name} as {stored_dtype or 'other numbers'}, not as {wanted};"
                f" it is not what {source}"
            )


class _WithoutWeights(TorchFunctionMode):
    """Creates what is to be filled later without memory.

    Modules make their weights so and then draw random numbers into them, which costs seconds, and
    without memory still loads half of torch's compiler; nothing is drawn. What modules compute
    (windows, filters) is computed.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CREATIONS:
            kwargs = {**kwargs, "device": "meta"}
        if func in DRAWS:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def _unfilled(config: Config) -> Network:
    with _WithoutWeights():
        return ARCHITECTURES[architecture_of(config)][1](config)


def _tensors(network: Network) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _config_of(card: ModelCard) -> Config:
    """Read the config of a card, which must agree with the rest of it."""
    if card.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"model {card.name!r} has the architecture {card.architecture!r}, which this version"
            f" does not know (it knows: {known}); a newer stembridge may"
        )
    try:
        config = ARCHITECTURES[card.architecture][0].from_dict(card.config)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the card of model {card.name!r} is wrong: {error}") from None
    told = (card.stems, card.sample_rate_hz, card.audio_channels)
    if told != (config.sources, config.sample_rate_hz, config.audio_channels):
        raise CheckpointError(
            f"the card of model {card.name!r} contradicts itself: stems, sample rate or channels"
            " differ between the card and its config"
        )
    return config


def _refuse_strangers(path: Path, start: bytes, size_bytes: int, limit_bytes: int) -> None:
    """Refuse pickles, and more bytes than the card's network needs."""
    # Zip archives and bare pickles are what torch.save writes; 80 may also begin the length that
    # a safetensors file opens with, and then an opening brace follows that length.
    bare_pickle = start.startswith(b"\x80") and start[8:9] != b"{"
    if start.startswith(b"PK\x03\x04") or bare_pickle:
        raise CheckpointError(
            f"{path} is a pickled checkpoint, which could run any code when read; it must be"
            " converted to safetensors"
        )
    if size_bytes > limit_bytes:
        raise CheckpointError(f"{path} is larger than the network that its card describes")


def _parameters(shapes: Mapping[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())


def _some(names: list[str]) -> str:
    """Show a few names out of a list, which may be long or hostile."""
    shown = ", ".join(repr(name[:60]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _times(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "one number"
