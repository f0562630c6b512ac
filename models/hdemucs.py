"""Hybrid Demucs: a U-Net on the spectrogram and one on the waveform, joined at the bottom.

Papers
------
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- version 3 of Demucs, the network below.

In short: the encoders shorten bins and frames by the same strides, so that when there is but one
bin left, its columns are the waveform's steps, and the two are added. The decoders undo that, and
the stems of both are added as audio::

    mixture ─┬─ STFT ─ conv/4 ─ ... ─ conv/8 ─┬─ conv/2 ─ deconv·2 ─┬─ deconv·8 ─ ... ─ iSTFT ─┬─ stems
             │            └───────────────────│─── skips ───────────│──────┘                   │
             └──────── conv/4 ─ ... ─ conv/4 ─┘                     └─ deconv·4 ─ ... ─────────┘

The names of the parameters are those of the published version 3 checkpoints.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass

from models.spectrogram import Framing
from models.unet import HybridConfig, HybridUNet, Level

__all__ = ["HDemucs", "HDemucsConfig"]


@dataclass(frozen=True)
class HDemucsConfig(HybridConfig):
    """The shape of a :class:`HDemucs`; the defaults are those of the published version 3."""

    hybrid: bool = True  # with a branch for the waveform, or the spectrogram alone
    hybrid_old: bool = False  # see Framing.ALIGNED_OLD
    dconv_attn: int = 4  # residual branches from this layer on have local attention ...
    dconv_lstm: int = 4  # ... and an LSTM

    def _check_levels(self, levels: list[Level]) -> None:
        super()._check_levels(levels)
        if self.hybrid_old and not self.hybrid:
            raise ValueError("hybrid_old asks for hybrid")
        freq_levels = sum(level.freq for level in levels)
        joins = levels[freq_levels - 1].joins
        if self.hybrid and joins and self.stride**freq_levels != self.nfft // 4:
            raise ValueError(f"{freq_levels} layers of stride {self.stride} do not fit the hop")


class HDemucs(HybridUNet):
    """Hybrid Demucs; see the module's head for the papers and :class:`HDemucsConfig`."""

    def __init__(self, config: HDemucsConfig) -> None:
        if not config.hybrid:
            framing = Framing.CENTERED
        else:
            framing = Framing.ALIGNED_OLD if config.hybrid_old else Framing.ALIGNED
        super().__init__(
            config,
            framing=framing,
            hybrid=config.hybrid,
            dconv_attn=config.dconv_attn,
            dconv_lstm=config.dconv_lstm,
        )
        self.config = config

    def valid_length(self, frames: int) -> int:
        """Give the length to pad to: any will do."""
        return frames
