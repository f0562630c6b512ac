"""A spectrogram U-Net that shares the mixture out among the stems, bin by bin.

Papers
------
Jansson et al., "Singing Voice Separation with Deep U-Net Convolutional Networks" (ISMIR 2017):
a U-Net on magnitudes whose output masks the mixture.
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- layers that shorten frequency only, by four each, and the
frequency embedding.
Stöter et al., "Open-Unmix" (JOSS 2019) -- a bidirectional LSTM over all frequencies at once.

Time keeps its hop throughout; each encoder layer shortens frequency by four and doubles the
channels; an LSTM at the bottom sees the whole segment; decoder layers undo encoder layers, with
skips. The output is a softmax over the stems, so the masks of a bin add up to one and the stems
add up to the mixture: the network starts from equal shares and learns what to move. That makes
it quick to train, which is why the shipped model is of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.configs import check_ranges, check_sources, check_types, from_dict, to_dict

__all__ = ["SpectralConfig", "SpectralUNet"]

FREQUENCY_STRIDE = 4
FREQUENCY_KERNEL = 8


@dataclass(frozen=True)
class SpectralConfig:
    """The shape of a network; every field is part of a checkpoint."""

    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")
    audio_channels: int = 2
    window_frames: int = 4096
    hop_frames: int = 1024
    channels: int = 16  # of the first layer; each further one has twice as many
    depth: int = 3
    lstm_channels: int = 256  # in each direction
    lstm_layers: int = 1
    sample_rate_hz: int = 44100
    segment_frames: int = 352800  # what separation should feed at a time

    def __post_init__(self) -> None:
        check_types(self)
        check_sources(self.sources)
        check_ranges(self, {f.name: (1, math.inf) for f in fields(self) if f.name != "sources"})
        if self.depth > 8 or (self.window_frames // 2) % FREQUENCY_STRIDE**self.depth:
            raise ValueError(
                f"half of window_frames {self.window_frames} must divide by"
                f" {FREQUENCY_STRIDE} to the power of depth {self.depth}"
            )
        if self.hop_frames * 2 > self.window_frames:
            raise ValueError("hop_frames must be at most half of window_frames")

    def to_dict(self) -> dict[str, Any]:
        """Give the config as JSON knows it; :meth:`from_dict` reads it back."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpectralConfig:
        """Build from :meth:`to_dict`'s result; ``ValueError`` for unknown or impossible values."""
        return from_dict(cls, values)


class ResidualBlock(nn.Module):
    """x + relu(norm(conv(x))): looks three columns and three bins wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, bins, columns) to the same shape."""
        return x + F.relu(self.norm(self.conv(x)))


class SpectralUNet(nn.Module):
    """See the module's head for the papers and :class:`SpectralConfig`."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        bins = config.window_frames // 2  # without the one at the Nyquist frequency
        audio_channels = config.audio_channels
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(config.window_frames), persistent=False)
        # Levels differ by 60 dB between bass and treble: each bin has a scale of its own.
        self.gain = nn.Parameter(torch.full((audio_channels, bins, 1), 1 / 3))
        self.bias = nn.Parameter(torch.ones(audio_channels, bins, 1))
        # Convolutions do not know where in frequency they are; this tells them.
        self.embedding = nn.Parameter(torch.zeros(config.channels, bins // FREQUENCY_STRIDE, 1))
        kernel, padding = FREQUENCY_KERNEL, (FREQUENCY_KERNEL - FREQUENCY_STRIDE) // 2
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        outer, inner = audio_channels, config.channels
        for index in range(config.depth):
            self.encoder.append(
                nn.Sequential(
                    nn.Conv2d(
                        outer, inner, (kernel, 3), (FREQUENCY_STRIDE, 1), (padding, 1), bias=False
                    ),
                    nn.BatchNorm2d(inner),
                    nn.ReLU(),
                    ResidualBlock(inner),
                )
            )
            outermost = index == 0
            decoded = len(config.sources) * audio_channels if outermost else outer
            layer = nn.Sequential(
                ResidualBlock(inner),
                nn.ConvTranspose2d(
                    inner, decoded, (kernel, 1), (FREQUENCY_STRIDE, 1), (padding, 0), bias=outermost
                ),
            )
            if not outermost:
                layer.extend([nn.BatchNorm2d(decoded), nn.ReLU()])
            self.decoder.insert(0, layer)
            outer, inner = inner, 2 * inner
            bins //= FREQUENCY_STRIDE
        self.squeeze = nn.Linear(outer * bins, config.lstm_channels)
        self.lstm = nn.LSTM(
            config.lstm_channels,
            config.lstm_channels,
            config.lstm_layers,
            bidirectional=True,
            batch_first=True,
        )
        self.expand = nn.Linear(2 * config.lstm_channels, outer * bins)

    def forward(self, mixture: Tensor) -> Tensor:
        """Estimate the stems of a mixture.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, any number of frames but 0.

        Returns
        -------
        Tensor
            (batch, stems, channels, frames), float32, in the order of ``config.sources``; their
            sum is the mixture up to rounding.
        """
        batch, channels, frames = mixture.shape
        config = self.config
        spectrum = torch.stft(
            mixture.reshape(batch * channels, frames),
            config.window_frames,
            config.hop_frames,
            window=self.window,
            pad_mode="constant",
            normalized=True,
            return_complex=True,
        )
        spectrum = spectrum.view(batch, channels, -1, spectrum.shape[-1])

        masks = self.masks(mixture, spectrum)  # (batch, stems, channels, bins + 1, columns)
        stems = (masks * spectrum[:, None]).flatten(0, 2)
        audio = torch.istft(
            stems,
            config.window_frames,
            config.hop_frames,
            window=self.window,
            normalized=True,
            length=frames,
        )
        return audio.view(batch, len(config.sources), channels, frames)

    def masks(self, mixture: Tensor, spectrum: Tensor) -> Tensor:
        """Share out each bin: (batch, stems, channels, bins + 1, columns), 0 to 1."""
        batch, channels = spectrum.shape[:2]
        level = mixture.square().mean(dim=(1, 2)).sqrt()[:, None, None, None] + 1e-5
        magnitude = spectrum.abs()[:, :, :-1]  # (batch, channels, bins, columns)
        x = torch.log(magnitude / level + 1e-3) * self.gain + self.bias

        skips = []
        for index, encode in enumerate(self.encoder):
            x = encode(x)  # (batch, channels * 2^i, bins / 4^(i+1), columns)
            if index == 0:
                x = x + self.embedding
            skips.append(x)
        y = x.flatten(1, 2).transpose(1, 2)  # (batch, columns, channels * bins)
        y = self.lstm(F.relu(self.squeeze(y)))[0]  # (batch, columns, 2 * lstm_channels)
        y = F.relu(self.expand(y)).transpose(1, 2)  # (batch, channels * bins, columns)
        x = y.reshape(x.shape)
        for decode in self.decoder:
            x = decode(x + skips.pop())
        x = x.view(batch, len(self.config.sources), channels, *x.shape[2:])
        # The bin at the Nyquist frequency goes with its neighbour.
        return torch.softmax(torch.cat([x, x[:, :, :, -1:]], dim=3), dim=1)
