"""Hybrid Transformer Demucs, version 4: two U-Nets and a transformer between them.

Papers
------
Rouard, Massa, Défossez, "Hybrid Transformers for Music Source Separation" (2022),
https://arxiv.org/abs/2211.08553 -- this network.
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- the two U-Nets, one on the spectrogram and one on the waveform.

In short: each U-Net shortens what it sees by ``stride`` a layer, the one along frequency, the
other along time; at the bottom a transformer lets each see itself and the other; the outputs of
both, as waveforms, add up to the stems::

    mixture ┬─ STFT ─ encoder ─┐             ┌─ decoder ─ inverse STFT ─┬─ stems
            │                  ├ transformer ┤                          +
            └──────── encoder ─┘             └─ decoder ────────────────┘

The published networks have four layers, so that 2 048 bins become 8. A deeper one brings the bins
down to one, where the waveform's branch joins the spectrogram's; layers below shorten time.

The names of the parameters are those of the published version 4 checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.configs import check_ranges
from models.transformer import CrossTransformer, TransformerConfig
from models.unet import HybridConfig, HybridUNet, Level

__all__ = ["HTDemucs", "HTDemucsConfig"]

SPARSE_OPTIONS = ("t_sparse_self_attn", "t_sparse_cross_attn")
GROUP_OPTIONS = ("t_norm_in_group", "t_group_norm")


@dataclass(frozen=True)
class HTDemucsConfig(HybridConfig):
    """The shape of a :class:`HTDemucs`; every field is part of a checkpoint.

    The defaults are the reference's, which no published network has: those have residual branches
    in the decoders too (``dconv_mode`` 3), segments of 7.8 s and, but for the one of six stems,
    512 ``bottom_channels``.
    """

    depth: int = 4
    multi_freqs_depth: int = 3
    dconv_comp: float = 8.0
    segment_frames: int = 441000
    use_train_segment: bool = True  # bring each input to segment_frames, as in training
    bottom_channels: int = 0  # of the transformer, if others than its surroundings have
    # The transformer's; see models.transformer.TransformerConfig.
    t_layers: int = 5  # 0 leaves the transformer out
    t_emb: str = "sin"
    t_hidden_scale: float = 4.0
    t_heads: int = 8
    t_max_positions: int = 10000
    t_norm_in: bool = True
    t_norm_in_group: int = 0
    t_group_norm: int = 0
    t_norm_first: bool = True
    t_norm_out: bool = True
    t_max_period: float = 10000.0
    t_layer_scale: bool = True
    t_gelu: bool = True
    t_weight_pos_embed: float = 1.0
    t_cape_mean_normalize: bool = True
    t_cross_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"bottom_channels": (0, 65536), "t_hidden_scale": (0, 1024)})
        self.transformer()

    def _check_levels(self, levels: list[Level]) -> None:
        super()._check_levels(levels)
        bottom = levels[-1]
        strided = sum(level.freq for level in levels)
        if levels[strided - 1].joins and self.stride**strided != self.nfft // 4:
            raise ValueError(f"{strided} layers of stride {self.stride} do not fit the hop")
        if self.t_layers and not bottom.freq:
            raise ValueError(f"depth {self.depth} leaves no spectrogram to the transformer")
        if self.t_layers and bottom.channels != bottom.channels_time:
            raise ValueError("channels_time: the transformer asks for equal channels")

    def transformer(self) -> TransformerConfig | None:
        """Gather what concerns the transformer; None if there is none."""
        if self.t_layers == 0:
            return None
        return TransformerConfig(
            dim=self.bottom_channels or self.levels()[-1].channels,
            layers=self.t_layers,
            heads=self.t_heads,
            hidden_scale=self.t_hidden_scale,
            emb=self.t_emb,
            max_positions=self.t_max_positions,
            max_period=self.t_max_period,
            weight_pos_embed=self.t_weight_pos_embed,
            cape_mean_normalize=self.t_cape_mean_normalize,
            norm_in=self.t_norm_in,
            norm_in_group=self.t_norm_in_group,
            group_norm=self.t_group_norm,
            norm_first=self.t_norm_first,
            norm_out=self.t_norm_out,
            layer_scale=self.t_layer_scale,
            gelu=self.t_gelu,
            cross_first=self.t_cross_first,
        )

    @classmethod
    def from_reference(cls, values: Mapping[str, Any]) -> HTDemucsConfig:
        """Build from the constructor arguments that a checkpoint carries.

        See :func:`models.configs.from_reference`; ``ValueError`` for impossible values, and for
        sparse attention, which needs kernels that are not here (no published network has it).
        """
        for name in SPARSE_OPTIONS:
            if values.get(name):
                raise ValueError(f"{name}: sparse attention is not supported")
        # True stands for one group there.
        groups = {name: int(values[name] or 0) for name in GROUP_OPTIONS if name in values}
        return super().from_reference({**values, **groups})


class HTDemucs(HybridUNet):
    """Hybrid Transformer Demucs; see the module's head and :class:`HTDemucsConfig`."""

    def __init__(self, config: HTDemucsConfig) -> None:
        super().__init__(config)
        self.config = config
        transformer = config.transformer()
        self.crosstransformer = None if transformer is None else CrossTransformer(transformer)
        self.widened = config.bottom_channels > 0
        if self.widened:
            outer, inner = config.levels()[-1].channels, config.bottom_channels
            self.channel_upsampler = nn.Conv1d(outer, inner, 1)
            self.channel_downsampler = nn.Conv1d(inner, outer, 1)
            self.channel_upsampler_t = nn.Conv1d(outer, inner, 1)
            self.channel_downsampler_t = nn.Conv1d(inner, outer, 1)

    def valid_length(self, frames: int) -> int:
        """Give the length to pad to, which is that of training; ``ValueError`` beyond it."""
        if not self.config.use_train_segment:
            return frames
        if frames > self.config.segment_frames:
            raise ValueError(
                f"{frames} frames are more than the {self.config.segment_frames} of this model"
            )
        return self.config.segment_frames

    def forward(self, mixture: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """Estimate the stems of a mixture.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, any number of frames but 0, and
            with ``use_train_segment`` no more than ``segment_frames``.
        stems : sequence of int, optional
            Positions in ``config.sources`` of the stems that are wanted, in the order wanted;
            all of them if not given. The last layers compute no others.

        Returns
        -------
        Tensor
            (batch, wanted stems, channels, frames), float32.

        Raises
        ------
        ValueError
            The mixture is too long.
        """
        frames = mixture.shape[-1]
        mixture = F.pad(mixture, (0, self.valid_length(frames) - frames))
        return super().forward(mixture, stems)[..., :frames]

    def bottom(self, x: Tensor, xt: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Let both branches see each other, in the transformer's width."""
        if self.crosstransformer is None or xt is None:
            return x, xt
        if not self.widened:
            seen: tuple[Tensor, Tensor] = self.crosstransformer(x, xt)
            return seen
        bands_and_columns = x.shape[2:]
        x = self.channel_upsampler(x.flatten(2)).unflatten(-1, bands_and_columns)
        x, xt = self.crosstransformer(x, self.channel_upsampler_t(xt))
        x = self.channel_downsampler(x.flatten(2)).unflatten(-1, bands_and_columns)
        return x, self.channel_downsampler_t(xt)
