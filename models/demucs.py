"""The waveform Demucs: a U-Net on samples, versions 1 to 3.

Papers
------
Défossez, Usunier, Bottou, Bach, "Music Source Separation in the Waveform Domain" (2019),
https://arxiv.org/abs/1911.13254 -- versions 1 and 2: an LSTM over the whole segment at the bottom.
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600 -- version 3: residual branches (:mod:`models.dconv`) with small
LSTMs and local attention in the layers, GELU, group normalisation in the inner layers.

In short: each encoder layer shortens time by ``stride`` and doubles the channels, each decoder
layer undoes one encoder layer and adds what that layer saw (a skip)::

    mixture ─ conv/4 ─ conv/4 ─ ... ─ LSTM ─ ... ─ deconv·4 ─ deconv·4 ─ stems
                 └────────│──────── skips ───────────│───────────┘
                          └──────────────────────────┘

Version 3's package carried version 2 on, with the context convolution padded; this file follows
it there. Version 2 is the default of :class:`DemucsConfig`, but for ``normalize``: version 2
itself left that to its caller.

The names of the parameters are those of version 3, where a layer without normalisation still has
the place for one: its second convolution is number 3 (or 4 behind a residual branch). Version 2
counted without, ``encoder.I.{0,2}`` and ``decoder.I.{0,2}``, and so did this project's first
checkpoints. :func:`rename_v2_keys` translates where a state dict is of that kind and returns
others unchanged, so readers call it on whatever they have read; ``load_state_dict`` does so by
itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.configs import (
    check_ranges,
    check_sources,
    check_types,
    from_dict,
    from_reference,
    to_dict,
)
from models.dconv import DConv
from models.lstm import BLSTM
from models.recurrence import WIDE_CHANNELS, is_wide
from models.resample import Resample2x
from models.rows import on_rows
from models.stretches import decode_in_stretches, encode_in_stretches
from models.widening import WideningConv1d, WideningConvTranspose1d

__all__ = ["Demucs", "DemucsConfig", "rename_v2_keys"]

Value = TypeVar("Value")
Layer = Callable[[Tensor], Tensor]

SEGMENTS_OF_A_WIDE_LSTM = 4
OUTER_LAYERS = 2  # that may go in stretches
REWRITE_MODULES = 3  # convolution, normalisation, GLU

# Wide enough for any network; one that is too large is told by its number of parameters.
MAX_WIDTH = 10**9
RANGES = {
    "audio_channels": (1, 64),
    "channels": (1, MAX_WIDTH),
    "growth": (0.01, 16),
    "depth": (1, 16),
    "kernel_size": (1, MAX_WIDTH),
    "stride": (1, MAX_WIDTH),
    "context": (0, MAX_WIDTH),
    "lstm_layers": (0, 16),
    "norm_starts": (0, math.inf),
    "norm_groups": (1, MAX_WIDTH),
    "dconv_mode": (0, 3),
    "dconv_depth": (-16, 16),
    "dconv_comp": (0.01, MAX_WIDTH),
    "rescale": (0, math.inf),
    "sample_rate_hz": (1, 1_000_000),
    "segment_frames": (1, 1_000_000_000),
}
HEADS = 4  # of the branches' attention
NO_LAYER = 1000  # beyond the deepest layer
VERSION_3 = {"gelu": True, "lstm_layers": 0, "norm_starts": 4, "dconv_mode": 1, "segment": 40}


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
    rewrite: bool = True  # a second convolution in each layer
    kernel_size: int = 8
    stride: int = 4
    context: int = 1  # frames seen on each side by the convolution that opens a decoder layer
    gelu: bool = False  # GELU, or ReLU
    glu: bool = True  # GLU, or ReLU, behind the second convolution
    lstm_layers: int = 2  # at the bottom; 0 leaves it out
    norm_starts: int = NO_LAYER  # layers from this one on are normalised
    norm_groups: int = 4
    dconv_mode: int = 0  # residual branches in the encoder (1), the decoder (2), both (3)
    dconv_depth: int = 2  # residual branches in a row; negative: without dilation
    dconv_comp: float = 4.0  # a branch has this times fewer channels
    dconv_attn: int = 4  # branches from this layer on have local attention ...
    dconv_lstm: int = 4  # ... or an LSTM
    resample: bool = True  # work at twice the sample rate
    normalize: bool = True  # to mean 0 and standard deviation 1, per input
    rescale: float = 0.1  # standard deviation that initial weights are pulled towards; 0: leave
    sample_rate_hz: int = 44100
    segment_frames: int = 441000  # what separation should feed at a time

    def __post_init__(self) -> None:
        check_types(self)
        check_sources(self.sources)
        check_ranges(self, RANGES)
        if self.kernel_size < self.stride:
            raise ValueError(f"kernel_size {self.kernel_size} leaves gaps at stride {self.stride}")
        if self.max_channels is not None and self.max_channels < self.channels:
            raise ValueError("max_channels is below the first layer's channels")
        if self.layer_channels()[-1] > MAX_WIDTH:
            raise ValueError(f"growth {self.growth} makes layers of more than {MAX_WIDTH} channels")
        for index, width in enumerate(self.layer_channels()):
            self._check_layer(index, width)

    def _check_layer(self, index: int, width: int) -> None:
        if index >= self.norm_starts and width % self.norm_groups:
            raise ValueError(
                f"norm_groups {self.norm_groups} does not divide the {width} channels of layer"
                f" {index}"
            )
        hidden = int(width / self.dconv_comp)
        if self.dconv_mode and (hidden < 1 or (index >= self.dconv_attn and hidden % HEADS)):
            raise ValueError(
                f"dconv_comp {self.dconv_comp} leaves {hidden} of the {width} channels of layer"
                f" {index}, which its branches cannot use"
            )

    def layer_channels(self) -> list[int]:
        """Channels after each encoder layer, outermost first."""
        widths, width = [], self.channels
        for _ in range(self.depth):
            widths.append(min(width, self.max_channels or width))
            width = int(self.growth * width)
        return widths

    def to_dict(self) -> dict[str, Any]:
        """Give the config as JSON knows it; :meth:`from_dict` reads it back."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DemucsConfig:
        """Build from :meth:`to_dict`'s result; ``ValueError`` for unknown or impossible values."""
        return from_dict(cls, values)

    @classmethod
    def from_reference(cls, values: Mapping[str, Any]) -> DemucsConfig:
        """Build from the constructor arguments that a version 3 checkpoint carries.

        What is not among `values` has version 3's defaults, not version 2's; what only training
        reads, and what no version knows, is left out. ``ValueError`` for impossible values.
        """
        return from_reference(cls, {**VERSION_3, **values})


class Demucs(nn.Module):
    """Waveform Demucs; see the module's head for the papers and :class:`DemucsConfig`."""

    def __init__(self, config: DemucsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        outer = config.audio_channels
        for index, inner in enumerate(config.layer_channels()):
            self.encoder.append(_encoder_layer(config, index, outer, inner))
            decoded = len(config.sources) * config.audio_channels if index == 0 else outer
            self.decoder.insert(0, _decoder_layer(config, index, inner, decoded))
            outer = inner
        self.lstm = BLSTM(outer, config.lstm_layers) if config.lstm_layers else None
        self.upsample = Resample2x(up=True) if config.resample else None
        self.downsample = Resample2x(up=False) if config.resample else None
        if config.rescale:
            rescale_convolutions(self, config.rescale)
        self.register_load_state_dict_pre_hook(_accept_v2_keys)  # type: ignore[no-untyped-call]

    @property
    def segments_at_once(self) -> int:
        """How many segments of equal length are best given in one batch; memory grows with it."""
        wide = self.lstm is not None and self.lstm.lstm.hidden_size >= WIDE_CHANNELS
        return SEGMENTS_OF_A_WIDE_LSTM if wide else 1

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

    def forward(self, mixture: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """Estimate the stems of a mixture.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, any number of frames but 0.
        stems : sequence of int, optional
            Positions in ``config.sources`` of the stems that are wanted, in the order wanted;
            all of them if not given. The last layer computes no others.

        Returns
        -------
        Tensor
            (batch, wanted stems, channels, frames), float32.
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
        x = _center_trim(self._u_net(x, stems), frames)  # (batch, stems * channels, frames)
        if mean is not None and std is not None:
            x = torch.addcmul(mean, x, std)
        return x.view(batch, -1, channels, frames)

    def _u_net(self, x: Tensor, stems: Sequence[int] | None) -> Tensor:
        """Map (batch, channels, frames) to (batch, stems * channels, frames)."""
        up = nn.Identity() if self.upsample is None else self.upsample
        down = nn.Identity() if self.downsample is None else self.downsample
        if self.lstm is None or not is_wide(self.lstm.lstm, x):
            x = up(x)
            skips = self._encode(x)
            bottom = skips[-1] if self.lstm is None else self.lstm(skips[-1])
            separated: Tensor = down(self._decode(bottom, skips, x, stems))
            return separated
        # The LSTM reads all items of the batch at once, everything else one by one; the widest
        # skip is computed again rather than kept for so long.
        again = len(x) > 1 and self._goes_in_stretches(x)
        items = [up(item) for item in x.split(1)]  # type: ignore[no-untyped-call]
        kept = [self._encode(item)[1 if again else 0 :] for item in items]
        bottoms = self.lstm(torch.cat([skips[-1] for skips in kept])).split(1)
        decoded = []
        for item, bottom, skips in zip(items, bottoms, kept, strict=True):
            outer = [self._encode_outer(item)] if again else []
            decoded.append(down(self._decode(bottom, [*outer, *skips], item, stems)))
            skips.clear()
        return torch.cat(decoded)

    def _goes_in_stretches(self, x: Tensor) -> bool:
        """Whether the two outermost layers see but a few steps, and are computed accordingly."""
        config = self.config
        return (
            on_rows(x)
            and config.rewrite
            and config.dconv_mode == 0
            and config.norm_starts >= OUTER_LAYERS
            and config.depth > OUTER_LAYERS
            and config.kernel_size == 2 * config.stride
        )

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Give the encoder layers' outputs; without the first where layers go in stretches."""
        skips = []
        layers = list(self.encoder)
        if self._goes_in_stretches(x):
            skips.append(self._encode_outer(x))
            x, layers = skips[-1], layers[OUTER_LAYERS:]
        for encode in layers:
            x = encode(x)  # (batch, channels * growth^i, steps / stride^(i+1))
            skips.append(x)
        return skips

    def _encode_outer(self, x: Tensor) -> Tensor:
        """Apply the two outermost layers; the first one's output is never there as a whole."""
        kernel_size, stride = self.config.kernel_size, self.config.stride
        first, second = self.encoder[:OUTER_LAYERS]
        return encode_in_stretches(
            lambda heard: second(first(heard)),
            x,
            kernel_size=(kernel_size - 1) * stride + kernel_size,
            stride=stride * stride,
            channels=self.config.layer_channels()[1],
        )

    def _decode(
        self, below: Tensor, skips: list[Tensor], x: Tensor, stems: Sequence[int] | None
    ) -> Tensor:
        """Undo :meth:`_encode`, whose skips these are, of `x`; uses the skips up."""
        y, skips = below, list(skips)
        layers = list(self.decoder)
        stretched = OUTER_LAYERS if self._goes_in_stretches(x) else 1
        for decode in layers[:-stretched]:
            y = decode(y + _center_trim(skips.pop(), y.shape[-1]))
        skip = _center_trim(skips.pop(), y.shape[-1])
        if stretched == OUTER_LAYERS:
            y = self._decode_outer(y, skip)
            return self._decode_outermost(y, x, stems)
        gather, unfold = self._split_last(layers[-1], stems)
        return unfold(gather(y + skip))

    def _decode_outer(self, y: Tensor, skip: Tensor) -> Tensor:
        """Undo the encoder's second layer in stretches."""
        layer = cast("nn.Sequential", self.decoder[-OUTER_LAYERS])
        return decode_in_stretches(
            layer[:REWRITE_MODULES],
            layer[REWRITE_MODULES:],
            y,
            lambda start, stop: skip[..., start:stop],
            context=self.config.context,
            stride=self.config.stride,
            channels=self.config.layer_channels()[0],
        )

    def _decode_outermost(self, y: Tensor, x: Tensor, stems: Sequence[int] | None) -> Tensor:
        """Undo the encoder's first layer in stretches, for which its output is computed again."""
        config = self.config
        steps = (x.shape[-1] - config.kernel_size) // config.stride + 1
        trim = (steps - y.shape[-1]) // 2

        def skip(start: int, stop: int) -> Tensor:
            first = (start + trim) * config.stride
            last = (stop - 1 + trim) * config.stride + config.kernel_size
            encoded: Tensor = self.encoder[0](x[..., first:last])
            return encoded

        gather, unfold = self._split_last(self.decoder[-1], stems)
        stem_count = len(config.sources) if stems is None else len(stems)
        return decode_in_stretches(
            gather,
            unfold,
            y,
            skip,
            context=config.context,
            stride=config.stride,
            channels=stem_count * config.audio_channels,
        )

    def _split_last(self, layer: nn.Module, stems: Sequence[int] | None) -> tuple[Layer, Layer]:
        """Split the last layer at its end, a convolution that computes the wanted stems only."""
        modules = cast("nn.Sequential", layer)
        unfold = cast("nn.ConvTranspose1d", modules[-1])
        weight, bias = unfold.weight, cast("Tensor", unfold.bias)
        if stems is not None:
            channels = self.config.audio_channels
            wanted = [stem * channels + channel for stem in stems for channel in range(channels)]
            weight, bias = weight[:, wanted], bias[wanted]
        return modules[:-1], lambda y: F.conv_transpose1d(
            y, weight.to(y.dtype), bias, unfold.stride
        )


def _encoder_layer(config: DemucsConfig, index: int, outer: int, inner: int) -> nn.Sequential:
    """Build layer `index`: from `outer` channels to `inner`, `stride` times fewer steps."""
    layer = nn.Sequential(
        WideningConv1d(outer, inner, config.kernel_size, config.stride),
        _norm(config, index, inner),
        _activation(config),
    )
    if config.dconv_mode & 1:
        layer.append(_branches(config, index, inner))
    if config.rewrite:
        layer.extend(_rewrite(config, index, inner, context=0))
    return layer


def _decoder_layer(config: DemucsConfig, index: int, inner: int, outer: int) -> nn.Sequential:
    """Build what undoes encoder layer `index`."""
    layer = nn.Sequential()
    if config.rewrite:
        layer.extend(_rewrite(config, index, inner, context=config.context))
    if config.dconv_mode & 2:
        layer.append(_branches(config, index, inner))
    layer.append(WideningConvTranspose1d(inner, outer, config.kernel_size, config.stride))
    if index > 0:
        layer.extend([_norm(config, index, outer), _activation(config)])
    return layer


def _rewrite(config: DemucsConfig, index: int, channels: int, *, context: int) -> list[nn.Module]:
    """Build the second convolution of a layer, which sees `context` frames on each side."""
    widened = 2 * channels if config.glu else channels
    return [
        WideningConv1d(channels, widened, 2 * context + 1, padding=context),
        _norm(config, index, widened),
        nn.GLU(dim=1) if config.glu else nn.ReLU(),
    ]


def _branches(config: DemucsConfig, index: int, channels: int) -> DConv:
    return DConv(
        channels,
        compress=config.dconv_comp,
        depth=config.dconv_depth,
        attn=index >= config.dconv_attn,
        heads=HEADS,
        lstm=index >= config.dconv_lstm,
    )


def _norm(config: DemucsConfig, index: int, channels: int) -> nn.Module:
    """Normalise in the inner layers; elsewhere hold the place, which the numbering counts."""
    if index < config.norm_starts:
        return nn.Identity()
    return nn.GroupNorm(config.norm_groups, channels)


def _activation(config: DemucsConfig) -> nn.Module:
    return nn.GELU() if config.gelu else nn.ReLU()


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
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and not layer.weight.is_meta:
            scale = (layer.weight.detach().std() / reference) ** 0.5
            with torch.no_grad():
                layer.weight /= scale
                if layer.bias is not None:
                    layer.bias /= scale


def rename_v2_keys(state: Mapping[str, Value]) -> dict[str, Value]:
    """Map the names of a version 2 state dict to those used here; others pass unchanged.

    The values may be anything that goes with a name (tensors, shapes). Version 2 is recognised by
    a parameter at ``encoder.0.2``, where version 3 always has an activation.
    """
    if "encoder.0.2.weight" not in state:
        return dict(state)
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if len(parts) == 4 and parts[0] in ("encoder", "decoder") and parts[2] == "2":
            parts[2] = "3"
        renamed[".".join(parts)] = value
    return renamed


def _accept_v2_keys(
    _module: nn.Module, state: dict[str, Any], prefix: str, *_others: object
) -> None:
    """Rename in place, as ``load_state_dict`` asks of a hook (it hands over a copy)."""
    own = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
    renamed = rename_v2_keys({name: state[key] for name, key in own.items()})
    for key in own.values():
        del state[key]
    state.update({prefix + name: value for name, value in renamed.items()})
