"""Bare state dicts: what network the names and shapes of their tensors belong to.

Two kinds were published without a word about the network they are for:

* Demucs version 2 (``demucs-e07c671f.th``, ``demucs48_hq-…``, ``demucs_extra-…``);
* torchaudio's ``HDEMUCS_HIGH_MUSDB`` and ``HDEMUCS_HIGH_MUSDB_PLUS``, which is the hybrid network
  with other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Recognised", "match_names", "recognise"]

FOUR_STEMS = ["drums", "bass", "other", "vocals"]
SAMPLE_RATE_HZ = 44100
# How long a segment is fed: version 2's own default; for torchaudio's, whose weights say nothing,
# what the published bags feed to the hybrid networks.
WAVEFORM_SEGMENT_SECONDS = 40
HYBRID_SEGMENT_SECONDS = 44

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Recognised:
    """What a bare state dict turned out to be."""

    kind: str  # "state-dict" (version 2) or "torchaudio"
    architecture: str
    arguments: dict[str, Any]  # of the reference's constructor
    names: dict[str, str]  # name there → name in the file; unused tensors are left out


def recognise(shapes: Shapes) -> Recognised:
    """Infer the network from the tensors' names and shapes.

    Inferred: channels, their growth, depth, kernel size, context, LSTM layers, the STFT's size,
    and the number of stems, which must be four.

    Assumed, since no shape tells it: the stems' order (drums, bass, other, vocals), 44.1 kHz,
    strides of 4, and the segment. For version 2 further: ReLU, GLU, resampling to twice the rate
    inside and normalisation outside of the network, as that version had by default; for
    torchaudio's the options that ``torchaudio.models.hdemucs_high`` leaves at their defaults.

    Raises
    ------
    ValueError
        It is none of the two. One line.
    """
    try:
        if any(name.startswith("freq_encoder.") for name in shapes):
            return _torchaudio(shapes)
        if "encoder.0.0.weight" in shapes and "decoder.0.0.weight" in shapes:
            return _version_2(shapes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"its tensors do not make a network ({error})") from None
    raise ValueError("its tensors are not those of Demucs version 2 or of torchaudio's HDemucs")


def match_names(names: Mapping[str, str], expected: Shapes) -> dict[str, str]:
    """Adapt version 2's numbering of layers to the network's, where the two differ.

    Version 3 holds a place for a normalisation before each activation, so that a layer's second
    convolution is number 3 there and number 2 in version 2.
    """
    matched = {}
    for name, stored in names.items():
        other = re.sub(
            r"^((?:en|de)coder\.\d+)\.([23])\.(weight|bias)$",
            lambda m: f"{m[1]}.{5 - int(m[2])}.{m[3]}",
            name,
        )
        matched[other if name not in expected and other in expected else name] = stored
    return matched


def _version_2(shapes: Shapes) -> Recognised:
    channels, audio_channels, kernel_size = shapes["encoder.0.0.weight"]
    depth = _count(shapes, r"encoder\.(\d+)\.0\.weight")
    arguments = {
        "sources": _four_stems(shapes[f"decoder.{depth - 1}.2.weight"][1], audio_channels),
        "audio_channels": audio_channels,
        "channels": channels,
        "growth": shapes["encoder.1.0.weight"][0] / channels if depth > 1 else 2.0,
        "depth": depth,
        "lstm_layers": _count(shapes, r"lstm\.lstm\.weight_ih_l(\d+)"),
        "kernel_size": kernel_size,
        "stride": 4,
        "context": shapes["decoder.0.0.weight"][2] // 2,
        "gelu": False,
        "glu": True,
        "rewrite": True,
        "norm_starts": depth,  # never
        "dconv_mode": 0,
        "normalize": False,
        "resample": True,
        "samplerate": SAMPLE_RATE_HZ,
        "segment": WAVEFORM_SEGMENT_SECONDS,
    }
    return Recognised("state-dict", "demucs", arguments, {name: name for name in shapes})


def _torchaudio(shapes: Shapes) -> Recognised:
    depth = _count(shapes, r"freq_encoder\.(\d+)\.conv\.weight")
    time_depth = _count(shapes, r"time_encoder\.(\d+)\.conv\.weight")
    channels, audio_channels, kernel_size = shapes["time_encoder.0.conv.weight"]
    decoded = shapes[f"time_decoder.{time_depth - 1}.conv_tr.weight"][1]
    arguments = {
        "sources": _four_stems(decoded, audio_channels),
        "audio_channels": audio_channels,
        "channels": channels,
        "depth": depth,
        "kernel_size": kernel_size,
        # Of the bins below the Nyquist frequency the first layer leaves one in four.
        "nfft": 2 * 4 * shapes["freq_emb.embedding.weight"][0],
        "samplerate": SAMPLE_RATE_HZ,
        "segment": HYBRID_SEGMENT_SECONDS,
    }
    names = {}
    # The last layer of the time branch is a mere convolution; torchaudio builds a normalisation
    # beside it all the same and never runs it.
    unused = f"time_encoder.{time_depth - 1}.norm1."
    for stored in shapes:
        if stored.startswith(unused):
            continue
        name = re.sub(r"^freq_(encoder|decoder)\.", r"\1.", stored)
        names[re.sub(r"^time_(encoder|decoder)\.", r"t\1.", name)] = stored
    return Recognised("torchaudio", "hdemucs", arguments, names)


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the layers whose names match."""
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)


def _four_stems(decoded: int, audio_channels: int) -> list[str]:
    if decoded != len(FOUR_STEMS) * audio_channels:
        raise ValueError(f"it separates {decoded} channels, not four stems of {audio_channels}")
    return FOUR_STEMS
