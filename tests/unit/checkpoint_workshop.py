"""Public checkpoint files, written with the reference package as its authors wrote them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from safetensors.torch import save_file

STEMS = ["drums", "bass", "other", "vocals"]
SHAPES: dict[str, tuple[type[torch.nn.Module], dict[str, Any]]] = {
    "demucs": (Demucs, {"channels": 4, "depth": 5, "dconv_lstm": 4, "segment": 40}),
    "hdemucs": (HDemucs, {"channels": 4, "segment": 44}),
    "htdemucs": (
        HTDemucs,
        {
            "channels": 8,
            "t_layers": 3,
            "t_heads": 2,
            "bottom_channels": 16,
            "segment": Fraction(39, 5),
        },
    ),
}


def reference(architecture: str, **changes: Any) -> torch.nn.Module:
    """A small network of the reference, whose every branch matters."""
    torch.manual_seed(0)
    klass, arguments = SHAPES[architecture]
    network = klass(**{"sources": STEMS, **arguments, **changes}).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(".scale"):
            torch.nn.init.uniform_(parameter, 0.1, 0.6)
    return network


def package_of(network: torch.nn.Module, *, half: bool = True) -> dict[str, Any]:
    """What ``demucs.states.serialize_model`` makes of a network, and the scores beside it."""
    args, kwargs = network._init_args_kwargs
    dtype = torch.half if half else None
    return {
        "klass": type(network),
        "args": args,
        "kwargs": kwargs,
        "state": {k: p.data.to("cpu", dtype) for k, p in network.state_dict().items()},
        "training_args": {"seed": 42, "dset": {"sources": STEMS}, "optim": {"lr": 3e-4}},
        "metrics": {
            "nsdr": np.float64(7.5),
            "per_stem": [np.float32(8.1), 3],
            "steps": np.int64(5),
            "best": True,
        },
    }


def write_th(folder: Path, content: Any, signature: str = "abcd1234", *, old: bool = False) -> Path:
    """``SIGNATURE-SHA8.th``, as the reference's ``save_with_checksum`` names it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "unnamed.th"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return named_by_hash(path, signature)


def named_by_hash(path: Path, signature: str = "abcd1234") -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"{signature}-{digest[:8]}.th"))


def with_pickle(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Rewrite a zip checkpoint with its pickle changed, under a name without a hash."""
    changed = path.with_name("changed.th")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            is_pickle = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, change(content) if is_pickle else content)
    return changed


def write_hub(folder: Path, network: torch.nn.Module, **metadata: str) -> Path:
    """One safetensors file with class and arguments, as the hub holds them."""
    package = package_of(network)

    def encode(value: Any) -> Any:
        if isinstance(value, Fraction):
            parts = {"numerator": value.numerator, "denominator": value.denominator}
            return {"_type": "fraction", **parts}
        if isinstance(value, dict):
            return {key: encode(item) for key, item in value.items()}
        return [encode(item) for item in value] if isinstance(value, list | tuple) else value

    klass = package["klass"]
    told = {
        "klass": f"{klass.__module__}.{klass.__name__}",
        "args": json.dumps(encode(package["args"])),
        "kwargs": json.dumps(encode(package["kwargs"])),
        **metadata,
    }
    path = folder / "abcd1234.safetensors"
    save_file({k: t.contiguous() for k, t in package["state"].items()}, path, metadata=told)
    return path


def version_2(**changes: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A network of version 2 and its bare state dict, which counts layers 0 and 2."""
    network = reference(
        "demucs",
        **{
            "depth": 3,
            "lstm_layers": 2,
            "gelu": False,
            "norm_starts": 99,
            "dconv_mode": 0,
            "normalize": False,
            **changes,
        },
    )
    state = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] in ("encoder", "decoder") and parts[2] == "3":
            parts[2] = "2"
        state[".".join(parts)] = tensor
    return network, state


def torchaudio_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's hybrid state dict as torchaudio names it, unused tensors and all."""
    renamed = {}
    for name, tensor in state.items():
        branch, rest = name.split(".", 1)
        names = {"encoder": "freq_encoder", "decoder": "freq_decoder"}
        names |= {"tencoder": "time_encoder", "tdecoder": "time_decoder"}
        renamed[f"{names.get(branch, branch)}.{rest}"] = tensor
    channels = state["tencoder.4.conv.weight"].shape[0]
    for kind in ("weight", "bias"):
        renamed[f"time_encoder.4.norm1.{kind}"] = torch.ones(channels)
    return renamed
