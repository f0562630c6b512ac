"""The U-Nets of versions 3 and 4 of Demucs: on the spectrogram, on the waveform, or on both.

Papers
------
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- the two branches.
Choi et al., "Investigating U-Nets with various Intermediate Blocks for Spectrogram-based Singing
Voice Separation" (2020), https://arxiv.org/abs/1912.02591 -- complex numbers as channels.

:mod:`models.hdemucs` and :mod:`models.htdemucs` say what is at the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.configs import (
    check_ranges,
    check_sources,
    check_types,
    from_dict,
    from_reference,
    to_dict,
)
from models.hybrid import DecoderLayer, EncoderLayer, ScaledEmbedding, SplitDecoder, SplitEncoder
from models.spectrogram import Framing, Spectrogram
from models.wiener import needs_all_stems, resynthesize

__all__ = ["HybridConfig", "HybridUNet", "Level"]

Config = TypeVar("Config", bound="HybridConfig")

MAX_LAYERS = 16
MAX_WIDTH = 65536
ENCODER, DECODER = 1, 2  # the bits of dconv_mode


class Level(NamedTuple):
    """One encoder layer of each branch, and the decoder layers that undo them."""

    bins: int  # that the spectrogram's encoder layer is given; 1 where it works on time
    kernel_size: int
    stride: int
    channels: int  # of the spectrogram, inside
    channels_time: int  # of the waveform, inside
    joins: bool  # leaves one bin, and the waveform is added
    split: bool  # has a layer of its own for each band
    norm: bool

    @property
    def freq(self) -> bool:
        """Whether there still is a spectrogram."""
        return self.bins > 1


class Skip(NamedTuple):
    """What encoder layers leave to the decoder layers that undo them."""

    x: Tensor  # the spectrogram's output
    length: int  # of the input that led to it
    xt: Tensor | None  # the waveform's output, if there is one of its own
    length_t: int


@dataclass(frozen=True)
class HybridConfig:
    """The shape of what versions 3 and 4 share; every field is part of a checkpoint."""

    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")
    audio_channels: int = 2
    channels: int = 48  # of the first layer
    channels_time: int | None = None  # of the waveform's first layer, if others
    growth: float = 2.0  # channels are multiplied by this from layer to layer
    nfft: int = 4096  # frames of the spectrogram's window; its hop is a quarter
    wiener_iters: int = 0  # see models.wiener; read where cac is False
    wiener_residual: bool = False
    cac: bool = True  # the spectrogram is complex numbers, or else magnitudes
    depth: int = 6
    rewrite: bool = True  # a second convolution in each layer
    multi_freqs: tuple[float, ...] = ()  # where to split the bins into bands ...
    multi_freqs_depth: int = 2  # ... in this many outer layers
    freq_emb: float = 0.2  # weight of the frequency embedding; 0 leaves it out
    emb_scale: float = 10.0
    kernel_size: int = 8
    time_stride: int = 2  # below where the branches join
    stride: int = 4
    context: int = 1  # neighbours seen on each side by the convolution that opens a decoder layer
    context_enc: int = 0  # the same in the encoder
    norm_starts: int = 4  # layers from this one on are normalised
    norm_groups: int = 4
    dconv_mode: int = 1  # residual branches in the encoder (1), the decoder (2), both (3)
    dconv_depth: int = 2  # residual branches in a row; negative: without dilation
    dconv_comp: float = 4.0  # a branch has this times fewer channels
    sample_rate_hz: int = 44100
    segment_frames: int = 1764000  # what separation should feed at a time

    def __post_init__(self) -> None:
        check_types(self)
        check_sources(self.sources)
        check_ranges(
            self,
            {
                "audio_channels": (1, 64),
                "channels": (1, MAX_WIDTH),
                "growth": (0.01, 100),
                "nfft": (8, 2**20),
                "wiener_iters": (-1, 64),
                "depth": (1, MAX_LAYERS),
                "multi_freqs_depth": (0, MAX_LAYERS),
                "kernel_size": (1, 1024),
                "stride": (1, 1024),
                "time_stride": (1, 1024),
                "context": (0, 64),
                "context_enc": (0, 64),
                "norm_starts": (0, 1000),
                "norm_groups": (1, MAX_WIDTH),
                "dconv_mode": (0, ENCODER | DECODER),
                "dconv_depth": (-MAX_LAYERS, MAX_LAYERS),
                "dconv_comp": (0.01, MAX_WIDTH),
                "sample_rate_hz": (1, 10_000_000),
                "segment_frames": (1, 10**9),
            },
        )
        if self.nfft % 8:
            raise ValueError(f"nfft must be a multiple of 8, not {self.nfft}")
        if not self.cac and self.wiener_iters > 0 and self.audio_channels > 2:
            raise ValueError(f"wiener_iters: {self.audio_channels} audio channels are too many")
        if self.kernel_size - self.kernel_size // 4 * 2 != self.stride or self.time_stride % 2:
            raise ValueError(
                f"kernel_size {self.kernel_size}, stride {self.stride} and time_stride"
                f" {self.time_stride} do not fit together"
            )
        shares = (0.0, *self.multi_freqs, 1.0)
        if list(shares) != sorted(set(shares)) or len(shares) > 64:
            raise ValueError(f"multi_freqs must rise between 0 and 1, not {shares[1:-1]}")
        self._check_levels(self.levels())

    def _check_levels(self, levels: list[Level]) -> None:
        for index, level in enumerate(levels):
            if level.freq and not level.joins and level.bins % self.stride:
                raise ValueError(f"nfft {self.nfft} does not divide by stride in layer {index}")
            narrowest, widest = sorted((level.channels, level.channels_time))
            if widest > MAX_WIDTH or int(narrowest / self.dconv_comp) < 1:
                raise ValueError(f"layer {index} cannot have {level.channels} channels")
            if level.split and (level.norm or level.joins or not level.freq):
                raise ValueError(f"multi_freqs_depth: layer {index} cannot be split")
            if level.split and self.kernel_size != 2 * self.stride:
                raise ValueError("multi_freqs asks for a kernel_size of twice the stride")

    def levels(self) -> list[Level]:
        """Work out the layers, outermost first."""
        levels = []
        bins, channels, channels_time = self.nfft // 2, self.channels, self.channels_time
        channels_time = channels if channels_time is None else channels_time
        for index in range(self.depth):
            freq = bins > 1
            joins = freq and bins <= self.kernel_size
            if joins:
                channels = channels_time = max(channels, channels_time)
            levels.append(
                Level(
                    bins=bins,
                    kernel_size=(
                        bins if joins else self.kernel_size if freq else 2 * self.time_stride
                    ),
                    stride=self.stride if freq else self.time_stride,
                    channels=channels,
                    channels_time=channels_time,
                    joins=joins,
                    split=bool(self.multi_freqs) and index < self.multi_freqs_depth,
                    norm=index >= self.norm_starts,
                )
            )
            channels, channels_time = int(self.growth * channels), int(self.growth * channels_time)
            bins = bins // self.stride if freq and not joins else 1
        return levels

    def to_dict(self) -> dict[str, Any]:
        """Give the config as JSON knows it; :meth:`from_dict` reads it back."""
        return to_dict(self)

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from :meth:`to_dict`'s result; ``ValueError`` for unknown or impossible values."""
        return from_dict(cls, values)

    @classmethod
    def from_reference(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from the constructor arguments that a checkpoint carries.

        See :func:`models.configs.from_reference`; ``ValueError`` for impossible values.
        """
        return from_reference(cls, {**values, "freq_emb": values.get("freq_emb", 0.2) or 0.0})


class HybridUNet(nn.Module):
    """The U-Net of versions 3 and 4; what is at its bottom is for subclasses to say.

    Parameters
    ----------
    config : HybridConfig
        Its shape.
    framing : Framing
        How the spectrogram is cut into columns.
    hybrid : bool
        Whether there is a branch for the waveform.
    dconv_attn, dconv_lstm : int, optional
        Layers from which on residual branches have local attention, an LSTM.
    """

    def __init__(
        self,
        config: HybridConfig,
        *,
        framing: Framing = Framing.ALIGNED,
        hybrid: bool = True,
        dconv_attn: int = MAX_LAYERS,
        dconv_lstm: int = MAX_LAYERS,
    ) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(config.nfft, framing)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.tencoder, self.tdecoder = nn.ModuleList(), nn.ModuleList()
        self.freq_emb: ScaledEmbedding | None = None
        self.freq_emb_weight = config.freq_emb
        # The channels of a stem: complex numbers take two each.
        self.audio_channels = config.audio_channels
        self.parts = config.audio_channels * (2 if config.cac else 1)
        self.stem_count = len(config.sources)
        self.cac = config.cac
        self.wiener_iters, self.wiener_residual = config.wiener_iters, config.wiener_residual
        outer, outer_time = self.parts, self.audio_channels
        for index, level in enumerate(config.levels()):
            branches = {
                "lstm": index >= dconv_lstm,
                "attn": index >= dconv_attn,
                "depth": config.dconv_depth,
                "compress": config.dconv_comp,
            }
            stems = len(config.sources) if index == 0 else 1
            self.encoder.append(_encoder(config, level, outer, branches))
            last = index == 0
            self.decoder.insert(0, _decoder(config, level, outer * stems, branches, last=last))
            if hybrid and level.freq:
                time = level._replace(
                    bins=1,
                    kernel_size=config.kernel_size,
                    channels=level.channels_time,
                    split=False,
                )
                self.tencoder.append(_encoder(config, time, outer_time, branches))
                self.tdecoder.insert(
                    0, _decoder(config, time, outer_time * stems, branches, last=last)
                )
            if last and config.freq_emb:
                left = 1 if level.joins or not level.freq else level.bins // level.stride
                self.freq_emb = ScaledEmbedding(left, level.channels, config.emb_scale)
            outer, outer_time = level.channels, level.channels_time

    def forward(self, mixture: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """Estimate the stems of a mixture.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, any number of frames but 0.
        stems : sequence of int, optional
            Positions in ``config.sources`` of the stems that are wanted, in the order wanted;
            all of them if not given. The last layers compute no others.

        Returns
        -------
        Tensor
            (batch, wanted stems, channels, frames), float32.
        """
        batch, channels, frames = mixture.shape
        spectrum = self.spectrogram(mixture)  # (batch, channels, bins, columns), complex
        x, mean, std = _normalized(self._features(spectrum).to(mixture.device))
        xt = mean_t = std_t = None
        if self.tencoder:
            xt, mean_t, std_t = _normalized(mixture)
        x, xt, skips = self._encode(x, xt)
        x, xt = self._decode(*self.bottom(x, xt), skips, stems)

        count = self.stem_count if stems is None else len(stems)
        audio = mixture.new_empty(batch, count, channels, frames)
        # Where stems do not depend on each other, one after the other: half the memory is here.
        groups = count if self.cac else 1
        for group, part in enumerate(x.chunk(groups, dim=1)):
            heard = torch.addcmul(mean, part, std).to(spectrum.device)
            spectra = self._spectra(heard, spectrum, stems)  # (batch, stems, channels, bins, ...)
            at = slice(group * count // groups, (group + 1) * count // groups)
            audio[:, at] = self.spectrogram.inverse(spectra, frames).to(mixture.device)
        if xt is not None and mean_t is not None and std_t is not None:
            parts = xt.view(batch, count, channels, frames).unbind(1)
            for stem, part in enumerate(parts):
                audio[:, stem] += torch.addcmul(mean_t, part, std_t)
        return audio

    def bottom(self, x: Tensor, xt: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Map the encoders' last outputs to what the decoders add to them; None for nothing.

        `x` is the spectrogram's, (batch, channels, bins, columns), or (batch, channels, steps)
        below where the branches join; `xt` the waveform's, (batch, channels, steps).
        """
        return None, None

    def _encode(self, x: Tensor, xt: Tensor | None) -> tuple[Tensor, Tensor | None, list[Skip]]:
        """Run the encoders of both branches."""
        skips = []
        for index, encode in enumerate(self.encoder):
            length, length_t, inject = x.shape[-1], 0, None
            branches = xt is not None and index < len(self.tencoder)
            if xt is not None and branches:
                length_t = xt.shape[-1]
                xt = self.tencoder[index](xt)
                if self.tencoder[index].empty:  # the branches join
                    inject = xt
            x = encode(x, inject)  # (batch, channels * growth^i, bins / stride^(i+1), columns)
            if index == 0 and self.freq_emb is not None:
                x += self.freq_emb(self.freq_emb_weight)
            skip_t = xt if branches and inject is None else None
            skips.append(Skip(x, length, skip_t, length_t))
        return x, xt, skips

    def _decode(
        self,
        below: Tensor | None,
        xt: Tensor | None,
        skips: list[Skip],
        stems: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the decoders of both branches, which uses up the skips."""
        x: Any = below
        alone = len(self.decoder) - len(self.tdecoder)
        for index, decode in enumerate(self.decoder):
            skip = skips.pop()
            outputs = outputs_t = None
            if stems is not None and not skips:
                if self.cac or not needs_all_stems(self.wiener_iters):
                    outputs = _channels(stems, self.parts)
                outputs_t = _channels(stems, self.audio_channels)
            skipped, length, skipped_t, length_t = skip
            del skip  # and with it the only other reference to what is used up now
            pair = _from_below(x, skipped)
            del skipped
            x, before = decode(*pair, length, outputs)
            del pair
            if index < alone:
                continue
            tdecode = self.tdecoder[index - alone]
            if skipped_t is None:  # the branches part
                xt, _ = tdecode(before[:, :, 0], None, length_t, outputs_t)
            else:
                xt, _ = tdecode(*_from_below(xt, skipped_t), length_t, outputs_t)
        return x, xt

    def _features(self, spectrum: Tensor) -> Tensor:
        """Turn complex numbers into channels, or into magnitudes."""
        if not self.cac:
            return spectrum.abs()
        parts = torch.view_as_real(spectrum)  # (batch, channels, bins, columns, 2)
        return parts.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def _spectra(self, x: Tensor, mixture: Tensor, stems: Sequence[int] | None) -> Tensor:
        """Turn outputs into (batch, wanted stems, channels, bins, columns), complex."""
        batch, _, bins, columns = x.shape
        if self.cac:
            parts = x.view(batch, -1, self.audio_channels, 2, bins, columns)
            # Bins side by side are what the inverse transform wants.
            parts = parts.permute(0, 1, 2, 5, 4, 3).contiguous()
            return torch.view_as_complex(parts).transpose(-1, -2)
        magnitudes = x.view(batch, -1, self.audio_channels, bins, columns)
        spectra = resynthesize(
            magnitudes, mixture, self.wiener_iters, residual=self.wiener_residual
        )
        all_there = stems is not None and needs_all_stems(self.wiener_iters)
        return spectra[:, stems] if all_there else spectra


def _encoder(
    config: HybridConfig, level: Level, outer: int, branches: Mapping[str, Any]
) -> nn.Module:
    """Make the encoder layer of a level, for the spectrogram if it has more than one bin."""

    def make(pad: bool) -> EncoderLayer:
        return EncoderLayer(
            outer,
            level.channels,
            kernel_size=level.kernel_size,
            stride=level.stride,
            norm=level.norm,
            norm_groups=config.norm_groups,
            empty=level.joins and not level.freq,
            freq=level.freq,
            dconv=bool(config.dconv_mode & ENCODER),
            dconv_kw=branches,
            context=config.context_enc,
            pad=pad,
            rewrite=config.rewrite,
        )

    if not level.split:
        return make(pad=not (level.joins and level.freq))
    return SplitEncoder(
        lambda: make(pad=False),
        config.multi_freqs,
        bins=level.bins,
        kernel_size=level.kernel_size,
        stride=level.stride,
    )


def _decoder(
    config: HybridConfig, level: Level, outer: int, branches: Mapping[str, Any], *, last: bool
) -> nn.Module:
    """Make the decoder layer of a level, for the spectrogram if it has more than one bin."""

    def make(pad: bool) -> DecoderLayer:
        return DecoderLayer(
            level.channels,
            outer,
            last=last,
            kernel_size=level.kernel_size,
            stride=level.stride,
            norm=level.norm,
            norm_groups=config.norm_groups,
            empty=level.joins and not level.freq,
            freq=level.freq,
            dconv=bool(config.dconv_mode & DECODER),
            dconv_kw=branches,
            context=config.context,
            context_freq=not level.split,
            pad=pad,
            rewrite=config.rewrite,
        )

    if not level.split:
        return make(pad=not (level.joins and level.freq))
    return SplitDecoder(
        lambda: make(pad=False),
        config.multi_freqs,
        bins=level.bins // level.stride,
        stride=level.stride,
        last=last,
    )


def _from_below(y: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor | None]:
    """Give a decoder layer its skip alone where nothing comes from below.

    Where nobody wants gradients the two are added at once, so that the skip's memory is free.
    """
    if y is None:
        return skip, None
    if torch.is_grad_enabled():
        return y, skip
    if y.dim() < skip.dim():
        y = y[:, :, None]  # (batch, channels, 1, columns)
    return y.add_(skip), None


def _channels(stems: Sequence[int], per_stem: int) -> list[int]:
    """List the output channels of some stems."""
    return [stem * per_stem + channel for stem in stems for channel in range(per_stem)]


def _normalized(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring each item of a batch to mean 0 and standard deviation 1; the two come with it."""
    dims = tuple(range(1, x.dim()))
    mean = x.mean(dim=dims, keepdim=True)
    std = x.std(dim=dims, keepdim=True, correction=min(1, x[0].numel() - 1))
    return (x - mean) / (1e-5 + std), mean, std
