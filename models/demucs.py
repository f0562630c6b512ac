"""The waveform Demucs: a U-Net on samples, with an LSTM at the bottom.

Papers
------
Défossez, Usunier, Bottou, Bach, "Music Source Separation in the Waveform Domain" (2019),
https://arxiv.org/abs/1911.13254 -- versions 1 and 2 of Demucs, the network below.
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- version 3, whose package carries this network on, with the
context convolution padded and the input normalised inside the network. This file follows it there.

In short: each encoder layer shortens time by ``stride`` and doubles the channels, each decoder
layer undoes one encoder layer and adds what that layer saw (a skip)::

    mixture ─ conv/4 ─ conv/4 ─ ... ─ BLSTM ─ ... ─ deconv·4 ─ deconv·4 ─ stems
                 └────────│──────── skips ────────────│───────────┘
                          └───────────────────────────┘

The names of the parameters are those of the published version 2 checkpoints
(``encoder.I.{0,2}``, ``lstm.lstm``, ``lstm.linear``, ``decoder.I.{0,2}``), so such a state dict
loads as it is; version 3 counts 3 where version 2 counts 2 (:func:`rename_v3_keys`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Demucs", "DemucsConfig", "Resample2x", "rename_v3_keys"]


@dataclass(frozen=True)
class DemucsConfig:
    """The shape of a network; every field is part of a checkpoint.

    The defaults are those of the published version 2 (265.7 M parameters), except for
    ``normalize``, which version 2 does outside of the network.
    """

    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")
    audio_channels: int = 2
    channels: int = 64  # of the first layer
    growth: float = 2.0  # channels are multiplied by this from layer to layer ...
    max_channels: int | None = None  # ... up to this (ours; the papers have no limit)
    depth: int = 6
    kernel_size: int = 8
    stride: int = 4
    context: int = 1  # frames seen on each side by the convolution that opens a decoder layer
    lstm_layers: int = 2  # 0 leaves the LSTM out
    resample: bool = True  # work at twice the sample rate
    normalize: bool = True  # to mean 0 and standard deviation 1, per input
    rescale: float = 0.1  # standard deviation that initial weights are pulled towards; 0: leave
    sample_rate_hz: int = 44100
    segment_frames: int = 441000  # what separation should feed at a time

    def __post_init__(self) -> None:
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources must be distinct names, not {self.sources!r}")
        positive = ("audio_channels", "channels", "depth", "stride", "sample_rate_hz")
        for name in (*positive, "segment_frames", "growth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        if self.kernel_size < self.stride:
            raise ValueError(f"kernel_size {self.kernel_size} leaves gaps at stride {self.stride}")
        if self.context < 0 or self.lstm_layers < 0 or self.rescale < 0:
            raise ValueError("context, lstm_layers and rescale cannot be negative")
        if self.max_channels is not None and self.max_channels < self.channels:
            raise ValueError("max_channels is below the first layer's channels")

    def layer_channels(self) -> list[int]:
        """Channels after each encoder layer, outermost first."""
        widths, width = [], self.channels
        for _ in range(self.depth):
            widths.append(min(width, self.max_channels or width))
            width = int(self.growth * width)
        return widths

    def to_dict(self) -> dict[str, Any]:
        """Give the config as JSON knows it; :meth:`from_dict` reads it back."""
        return {**asdict(self), "sources": list(self.sources)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DemucsConfig:
        """Build from :meth:`to_dict`'s result; ``ValueError`` for unknown or impossible values."""
        try:
            return cls(**{**values, "sources": tuple(values["sources"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a Demucs config: {error}") from None


class Resample2x(nn.Module):
    """Change the sample rate by 2 or by 1/2 with a windowed sinc filter.

    The filter is the one of julius' ``resample_frac``, which the published checkpoints were
    trained with: 24 zero crossings under a squared-cosine window, cut at 0.945 of the lower
    Nyquist frequency (J. O. Smith, https://ccrma.stanford.edu/~jos/resample/).
    """

    ZEROS = 24
    ROLLOFF = 0.945

    def __init__(self, *, up: bool) -> None:
        super().__init__()
        # One output frame per phase, for every `stride` input frames.
        self.stride, phases = (1, 2) if up else (2, 1)
        self.width = math.ceil(self.ZEROS * self.stride / self.ROLLOFF)
        taps = torch.arange(-self.width, self.width + self.stride).float() / self.stride
        offsets = torch.arange(phases).float()[:, None] / phases
        t = ((taps - offsets) * self.ROLLOFF).clamp(-self.ZEROS, self.ZEROS) * math.pi
        sinc = torch.where(t == 0, 1.0, torch.sin(t) / t)  # (phases, taps)
        kernel = sinc * torch.cos(t / self.ZEROS / 2) ** 2
        kernel = kernel / kernel.sum(dim=1, keepdim=True)  # a constant stays what it is
        self.kernel: Tensor
        self.register_buffer("kernel", kernel[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Resample (batch, channels, frames); half a frame too much is dropped."""
        batch, channels, frames = x.shape
        x = F.pad(
            x.reshape(-1, 1, frames), (self.width, self.width + self.stride), mode="replicate"
        )
        y = F.conv1d(x, self.kernel, stride=self.stride)  # (batch * channels, phases, steps)
        y = y.transpose(1, 2).reshape(batch, channels, -1)
        return y[..., : frames * self.kernel.shape[0] // self.stride]


class BLSTM(nn.Module):
    """A bidirectional LSTM over time, projected back to as many channels as came in."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers=layers, bidirectional=True)
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, steps) to the same shape."""
        x = self.lstm(x.permute(2, 0, 1))[0]  # (steps, batch, 2 * channels)
        x = self.linear(x)  # (steps, batch, channels)
        return x.permute(1, 2, 0)


class Demucs(nn.Module):
    """Waveform Demucs; see the module's head for the papers and :class:`DemucsConfig`."""

    def __init__(self, config: DemucsConfig) -> None:
        super().__init__()
        self.config = config
        kernel_size, stride, context = config.kernel_size, config.stride, config.context
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        outer = config.audio_channels
        for index, inner in enumerate(config.layer_channels()):
            self.encoder.append(
                nn.Sequential(
                    nn.Conv1d(outer, inner, kernel_size, stride),
                    nn.ReLU(),
                    nn.Conv1d(inner, 2 * inner, 1),
                    nn.GLU(dim=1),
                )
            )
            outermost = index == 0
            decoded = len(config.sources) * config.audio_channels if outermost else outer
            layer = nn.Sequential(
                nn.Conv1d(inner, 2 * inner, 2 * context + 1, padding=context),
                nn.GLU(dim=1),
                nn.ConvTranspose1d(inner, decoded, kernel_size, stride),
            )
            if not outermost:
                layer.append(nn.ReLU())
            self.decoder.insert(0, layer)
            outer = inner
        self.lstm = BLSTM(outer, config.lstm_layers) if config.lstm_layers else None
        self.upsample = Resample2x(up=True) if config.resample else None
        self.downsample = Resample2x(up=False) if config.resample else None
        if config.rescale:
            rescale_convolutions(self, config.rescale)

    def valid_length(self, frames: int) -> int:
        """Find the shortest input of at least `frames` that convolutions leave nothing over of."""
        factor = 2 if self.config.resample else 1
        kernel_size, stride = self.config.kernel_size, self.config.stride
        steps = frames * factor
        for _ in range(self.config.depth):
            steps = max(1, math.ceil((steps - kernel_size) / stride) + 1)
        for _ in range(self.config.depth):
            steps = (steps - 1) * stride + kernel_size
        return math.ceil(steps / factor)

    def forward(self, mixture: Tensor) -> Tensor:
        """Estimate the stems of a mixture.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, any number of frames but 0.

        Returns
        -------
        Tensor
            (batch, stems, channels, frames), float32, in the order of ``config.sources``.
        """
        batch, channels, frames = mixture.shape
        x = mixture
        mean = std = None
        if self.config.normalize:
            mono = mixture.mean(dim=1, keepdim=True)  # (batch, 1, frames)
            mean = mono.mean(dim=-1, keepdim=True)  # (batch, 1, 1)
            std = mono.std(dim=-1, keepdim=True, correction=min(1, frames - 1))
            x = (x - mean) / (1e-5 + std)

        padding = self.valid_length(frames) - frames
        x = F.pad(x, (padding // 2, padding - padding // 2))
        if self.upsample is not None:
            x = self.upsample(x)

        skips = []
        for encode in self.encoder:
            x = encode(x)  # (batch, channels * growth^i, steps / stride^(i+1))
            skips.append(x)
        if self.lstm is not None:
            x = self.lstm(x)
        for decode in self.decoder:
            x = decode(x + _center_trim(skips.pop(), x.shape[-1]))

        if self.downsample is not None:
            x = self.downsample(x)
        if mean is not None and std is not None:
            x = x * std + mean
        x = _center_trim(x, frames)
        return x.view(batch, len(self.config.sources), channels, frames)


def _center_trim(x: Tensor, frames: int) -> Tensor:
    """Cut the last dimension to `frames` around its middle; an odd surplus goes at the end."""
    surplus = x.shape[-1] - frames
    return x[..., surplus // 2 : surplus // 2 + frames]


def rescale_convolutions(module: nn.Module, reference: float) -> None:
    """Pull the initial weights of all convolutions towards one standard deviation.

    Weights (and biases) are divided by ``sqrt(std / reference)``: section 4.3 of the first paper,
    without which deep stacks of small weights start out almost silent.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            scale = (layer.weight.detach().std() / reference) ** 0.5
            with torch.no_grad():
                layer.weight /= scale
                if layer.bias is not None:
                    layer.bias /= scale


def rename_v3_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map a version 3 state dict of this network to the names used here.

    Version 3 holds a place for a normalisation before each activation, so that the second
    convolution of a layer is number 3; without those normalisations it is number 2 here and in
    version 2. Other names pass unchanged.
    """
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in ("encoder", "decoder") and parts[2] == "3":
            parts[2] = "2"
        renamed[".".join(parts)] = value
    return renamed
