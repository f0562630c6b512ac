"""The layers of the hybrid Demucs networks, for the spectrogram and for the waveform.

Papers
------
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600.
Isik et al., "PoCoNet" (2020), https://arxiv.org/abs/2008.04470 -- the frequency embedding.

A layer works on the waveform, (batch, channels, steps), or, with ``freq``, on the spectrogram,
(batch, channels, bins, columns), of which it shortens the bins only. Residual branches always
look along time: in the spectrogram, each bin's row is a sequence of its own.

The names of the parameters are those of the published version 3 and 4 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dconv import DConv
from models.rows import (
    blocks_of_rows,
    frequency_conv,
    frequency_conv_transpose,
    lay_out,
    on_rows,
    plane_conv,
    pointwise_conv,
)
from models.stretches import decode_in_stretches, encode_in_stretches, gather_in_stretches

__all__ = ["DecoderLayer", "EncoderLayer", "ScaledEmbedding", "SplitDecoder", "SplitEncoder"]


class ScaledEmbedding(nn.Module):
    """One learned vector for each bin; stored `scale` times smaller than it is used."""

    def __init__(self, bins: int, channels: int, scale: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(bins, channels)
        self.scale = scale

    def forward(self, weight: float) -> Tensor:
        """Give `weight` times the vectors: (channels, bins, 1), to be added to a spectrogram."""
        return self.embedding.weight.t()[..., None] * (self.scale * weight)


class EncoderLayer(nn.Module):
    """A strided convolution, residual branches, and a convolution through a GLU.

    Parameters
    ----------
    chin, chout : int
        Channels of the input and of the output.
    kernel_size, stride : int
        Of the strided convolution.
    norm, norm_groups
        Whether to normalise after each convolution, and over how many groups of channels.
    empty : bool
        Only the strided convolution: where the waveform joins the spectrogram.
    freq : bool
        Spectrogram, or else waveform.
    dconv, dconv_kw
        Whether there are residual branches, and what :class:`models.dconv.DConv` is given.
    context : int
        Neighbours on each side that the second convolution sees.
    pad : bool
        Pad by a quarter of the kernel, so that the output is `stride` times shorter.
    rewrite : bool
        Whether there is a second convolution.
    """

    def __init__(
        self,
        chin: int,
        chout: int,
        *,
        kernel_size: int = 8,
        stride: int = 4,
        norm_groups: int = 1,
        empty: bool = False,
        freq: bool = True,
        dconv: bool = True,
        norm: bool = True,
        context: int = 0,
        dconv_kw: Mapping[str, Any] | None = None,
        pad: bool = True,
        rewrite: bool = True,
    ) -> None:
        super().__init__()
        self.freq, self.empty, self.stride = freq, empty, stride
        padding = kernel_size // 4 if pad else 0
        self.conv = (
            nn.Conv2d(chin, chout, (kernel_size, 1), (stride, 1), (padding, 0))
            if freq
            else nn.Conv1d(chin, chout, kernel_size, stride, padding)
        )
        if empty:
            return
        self.norm1 = _norm(norm, norm_groups, chout)
        self.rewrite = _rewrite(freq, chout, context) if rewrite else None
        self.norm2 = _norm(norm and rewrite, norm_groups, 2 * chout)
        self.dconv = DConv(chout, **(dconv_kw or {})) if dconv else None

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """Encode; `inject` is what the waveform brings where the two join.

        A spectrogram with a single bin may be given to a waveform layer. A waveform that `stride`
        does not divide is filled up with zeros.
        """
        if self._goes_by_rows(x) and inject is None:
            return _stack([self._encode_rows(item) for item in x.transpose(1, 2).contiguous()])
        if not self.freq:
            if x.dim() == 4:
                x = x.flatten(1, 2)  # (batch, channels, steps)
            if self._goes_in_stretches(x) and inject is None:
                return self._encode_in_stretches(x)
            if surplus := x.shape[-1] % self.stride:
                x = F.pad(x, (0, self.stride - surplus))
        x = self.conv(x)
        if self.empty:
            return x
        if inject is not None:
            x = x + (inject[:, :, None] if x.dim() == 4 else inject)
        x = F.gelu(self.norm1(x))
        if self.dconv is not None:
            x = _along_time(self.dconv, x)
        if self.rewrite is not None:
            x = F.glu(self.norm2(self.rewrite(x)), dim=1)
        return x

    def lay_out_weights(self) -> None:
        """Put weights in the order in memory that computing by rows reads them in."""
        if self.freq:
            self.conv.weight.data = lay_out(self.conv.weight.data, 0, 2, 1, 3)

    def _goes_by_rows(self, x: Tensor) -> bool:
        """Whether nothing in the layer but its strided convolution looks at other rows."""
        return (
            self.freq
            and on_rows(x)
            and not self.empty
            and isinstance(self.norm1, nn.Identity)
            and (self.rewrite is None or set(self.rewrite.kernel_size) == {1})
        )

    def _goes_in_stretches(self, x: Tensor) -> bool:
        """Whether nothing in a waveform's layer looks far, but for its residual branches."""
        return (
            on_rows(x)
            and not self.empty
            and isinstance(self.norm1, nn.Identity)
            and (self.rewrite is None or set(self.rewrite.kernel_size) == {1})
        )

    def _encode_in_stretches(self, x: Tensor) -> Tensor:
        """Encode (batch, channels, steps), filled up with zeros as far as the stride asks for."""
        conv, padding = self.conv, int(self.conv.padding[0])
        x = encode_in_stretches(
            lambda heard: F.gelu(F.conv1d(heard, conv.weight, conv.bias, conv.stride)),
            F.pad(x, (0, -x.shape[-1] % self.stride)) if x.shape[-1] % self.stride else x,
            kernel_size=conv.kernel_size[0],
            stride=self.stride,
            channels=conv.out_channels,
            padding=padding,
        )
        if self.dconv is not None:
            x = self.dconv(x)
        if self.rewrite is None:
            return x
        rewrite = self.rewrite
        return gather_in_stretches(lambda y: F.glu(rewrite(y), dim=1), x, None, context=0)

    def _encode_rows(self, x: Tensor) -> Tensor:
        """Encode one spectrogram, (bins, channels, columns), a few rows at a time."""
        kernel_size, padding = self.conv.kernel_size[0], int(self.conv.padding[0])
        bins = (len(x) + 2 * padding - kernel_size) // self.stride + 1
        channels, columns = self.conv.out_channels, x.shape[-1]
        encoded = x.new_empty(bins, channels, columns)
        for start, stop in blocks_of_rows(bins, 2 * channels * columns):
            conv = self.conv
            y = frequency_conv(x, conv.weight, conv.bias, self.stride, padding, start, stop)
            y = F.gelu(y)
            if self.dconv is not None:
                y = self.dconv(y)
            if self.rewrite is not None:
                y = F.glu(pointwise_conv(y, self.rewrite.weight, self.rewrite.bias), dim=1)
            encoded[start:stop] = y
        return encoded


class DecoderLayer(nn.Module):
    """Undo an :class:`EncoderLayer`, whose parameters these are, with the skip's help.

    Parameters
    ----------
    last : bool
        Outermost: its outputs are the stems' channels, and no activation follows.
    context_freq : bool
        Let the convolution that opens the layer see neighbouring bins; or else columns only.
    """

    def __init__(
        self,
        chin: int,
        chout: int,
        *,
        last: bool = False,
        kernel_size: int = 8,
        stride: int = 4,
        norm_groups: int = 1,
        empty: bool = False,
        freq: bool = True,
        dconv: bool = True,
        norm: bool = True,
        context: int = 1,
        dconv_kw: Mapping[str, Any] | None = None,
        pad: bool = True,
        context_freq: bool = True,
        rewrite: bool = True,
    ) -> None:
        super().__init__()
        self.freq, self.empty, self.last = freq, empty, last
        self.padding = kernel_size // 4 if pad else 0
        self.conv_tr = (
            nn.ConvTranspose2d(chin, chout, (kernel_size, 1), (stride, 1))
            if freq
            else nn.ConvTranspose1d(chin, chout, kernel_size, stride)
        )
        self.norm2 = _norm(norm, norm_groups, chout)
        if empty:
            return
        self.rewrite = _rewrite(freq, chin, context, across=context_freq) if rewrite else None
        self.norm1 = _norm(norm and rewrite, norm_groups, 2 * chin)
        self.dconv = DConv(chin, **(dconv_kw or {})) if dconv else None

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None,
        length: int,
        outputs: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Decode what comes from below, and the skip where there is one.

        Parameters
        ----------
        length : int
            Steps that the waveform had before the encoder's layer; not read with ``freq``.
        outputs : sequence of int, optional
            Output channels that are wanted; all of them if not given.

        Returns
        -------
        tuple of Tensor
            The output, and what it was before the transposed convolution if that has one bin.
        """
        if self._goes_by_rows(x):
            items = x.transpose(1, 2).contiguous()
            skips = [None] * len(items) if skip is None else skip.transpose(1, 2)
            pairs = zip(items, skips, strict=True)
            return _stack([self._decode_rows(*pair, outputs) for pair in pairs]), None
        if self._goes_in_stretches(x):
            x = self._decode_in_stretches(x, skip, outputs)
            return x[..., self.padding : self.padding + length], None
        before = self.gather(x, skip)
        x = self.unfold(before, outputs)
        if self.padding and self.freq:
            x = x[:, :, self.padding : -self.padding]
        elif not self.freq:
            x = x[..., self.padding : self.padding + length]
        return (x if self.last else F.gelu(x)), before

    def lay_out_weights(self) -> None:
        """Put weights in the order in memory that computing by rows reads them in."""
        if not self.freq:
            return
        self.conv_tr.weight.data = lay_out(self.conv_tr.weight.data, 2, 1, 0, 3)
        if not self.empty and self.rewrite is not None:
            self.rewrite.weight.data = lay_out(self.rewrite.weight.data, 3, 0, 2, 1)

    def _goes_by_rows(self, x: Tensor) -> bool:
        """Whether nothing in the layer but its two convolutions looks at other rows."""
        return (
            self.freq
            and on_rows(x)
            and x.dim() == 4
            and x.shape[2] > 1
            and not self.empty
            and self.rewrite is not None
            and self.padding > 0
            and self.conv_tr.kernel_size[0] == 2 * self.conv_tr.stride[0]
            and isinstance(self.norm2, nn.Identity)
        )

    def _goes_in_stretches(self, x: Tensor) -> bool:
        """Whether nothing in a waveform's layer looks far, but for its residual branches."""
        return (
            not self.freq
            and on_rows(x)
            and not self.empty
            and self.rewrite is not None
            and self.conv_tr.kernel_size[0] == 2 * self.conv_tr.stride[0]
            and isinstance(self.norm2, nn.Identity)
        )

    def _decode_in_stretches(
        self, x: Tensor, skip: Tensor | None, outputs: Sequence[int] | None
    ) -> Tensor:
        """Decode (batch, channels, steps), uncut."""
        rewrite = cast("nn.Conv1d", self.rewrite)
        context, stride = rewrite.kernel_size[0] // 2, self.conv_tr.stride[0]

        def gather(y: Tensor) -> Tensor:
            return F.glu(rewrite(y), dim=1)

        def unfold(y: Tensor) -> Tensor:
            y = self.unfold(y, outputs)
            return y if self.last else F.gelu(y)

        channels = self.conv_tr.out_channels if outputs is None else len(outputs)
        if self.dconv is not None:
            x = self.dconv(gather_in_stretches(gather, x, skip, context=context))
            return decode_in_stretches(
                lambda y: y, unfold, x, None, context=0, stride=stride, channels=channels
            )
        return decode_in_stretches(
            gather,
            unfold,
            x,
            None if skip is None else lambda start, stop: skip[..., start:stop],
            context=context,
            stride=stride,
            channels=channels,
        )

    def _decode_rows(self, x: Tensor, skip: Tensor | None, outputs: Sequence[int] | None) -> Tensor:
        """Decode one spectrogram, (bins, channels, columns), a few rows at a time."""
        bins, channels, columns = x.shape
        rewrite = cast("nn.Conv2d", self.rewrite)
        gather_weight, gather_bias = rewrite.weight, rewrite.bias
        weight, bias = self.conv_tr.weight, self.bias(outputs)
        if outputs is not None:
            weight = weight[:, outputs]
        stride, padding = self.conv_tr.stride[0], self.padding
        above, beside = (size // 2 for size in gather_weight.shape[2:])  # of context
        decoded = x.new_empty(bins * stride, weight.shape[1], columns)
        row_before = x.new_zeros(1, channels, columns)
        for start, stop in blocks_of_rows(bins, 2 * channels * columns):
            first, last = max(start - above, 0), min(stop + above, bins)
            # The block with its context on all sides, which is silence outside of the spectrogram.
            y = x.new_zeros(stop - start + 2 * above, channels, columns + 2 * beside)
            inside = y[first - start + above : last - start + above, :, beside : beside + columns]
            inside.copy_(x[first:last])
            if skip is not None:
                inside += skip[first:last]
            y = F.glu(plane_conv(y, gather_weight, gather_bias), dim=1)
            if self.dconv is not None:
                y = self.dconv(y)
            after = [torch.zeros_like(row_before)] if stop == bins else []
            y = torch.cat([row_before, y, *after])
            row_before = y[-1:]
            y = frequency_conv_transpose(y, weight, bias, stride)
            if not self.last:
                y = F.gelu(y)
            at = start * stride - padding
            first, last = max(at, 0), min(at + len(y), len(decoded))
            decoded[first:last] = y[first - at : last - at]
        return decoded

    def gather(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Bring together what comes from below and the skip, at the length of the input."""
        if self.freq and x.dim() == 3:
            x = x[:, :, None]  # (batch, channels, 1, columns)
        if skip is not None:
            x = x + skip
        if self.empty:
            return x
        if self.rewrite is not None:
            x = F.glu(self.norm1(self.rewrite(x)), dim=1)
        return x if self.dconv is None else _along_time(self.dconv, x)

    def unfold(self, x: Tensor, outputs: Sequence[int] | None = None) -> Tensor:
        """Apply the transposed convolution, for the wanted output channels, uncut."""
        if outputs is None:
            y: Tensor = self.norm2(self.conv_tr(x))
            return y
        if not isinstance(self.norm2, nn.Identity):  # which reads all channels
            y = self.norm2(self.conv_tr(x))[:, outputs]
            return y
        convolve = F.conv_transpose2d if self.freq else F.conv_transpose1d
        weight, bias = self.conv_tr.weight[:, outputs], self.bias(outputs)
        return convolve(x, weight, bias, self.conv_tr.stride)

    def bias(self, outputs: Sequence[int] | None = None) -> Tensor:
        """Give the transposed convolution's bias, for the wanted output channels."""
        bias: Tensor = self.conv_tr.bias  # type: ignore[assignment]
        return bias if outputs is None else bias[outputs]


class SplitEncoder(nn.Module):
    """An encoder layer of its own for each band of frequencies.

    With equal weights in all layers this is the layer itself on all bins: a band starts where the
    kernel of the one below would have gone next.

    Parameters
    ----------
    make : callable
        Makes one unpadded layer with ``freq``, each time it is called.
    ratios : sequence of float
        Where to split, as shares of the bins, rising.
    bins, kernel_size, stride : int
        Of the input; of the layer.

    Raises
    ------
    ValueError
        A band is too narrow for the kernel.
    """

    def __init__(
        self,
        make: Callable[[], EncoderLayer],
        ratios: Sequence[float],
        *,
        bins: int,
        kernel_size: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.padding = kernel_size // 4
        # Counted in padded bins, where kernels start at multiples of the stride.
        self.bands: list[tuple[int, int]] = []
        start, padded_bins = 0, bins + 2 * self.padding
        for ratio in ratios:
            width = round(bins * ratio) + self.padding - start
            steps = round((width - kernel_size) / stride + 1)
            self.bands.append((start, start + (steps - 1) * stride + kernel_size))
            start += steps * stride
        self.bands.append((start, padded_bins))
        for low, high in self.bands:
            if high - low < kernel_size or high > padded_bins:
                raise ValueError(f"bands split at {list(ratios)} of {bins} bins are too narrow")
        self.layers = nn.ModuleList(make() for _ in self.bands)

    def forward(self, x: Tensor, _inject: Tensor | None = None) -> Tensor:
        """Encode (batch, channels, bins, columns)."""
        x = F.pad(x, (0, 0, self.padding, self.padding))
        bands = zip(self.layers, self.bands, strict=True)
        return torch.cat([layer(x[:, :, low:high]) for layer, (low, high) in bands], dim=2)


class SplitDecoder(nn.Module):
    """A decoder layer of its own for each band of frequencies; see :class:`SplitEncoder`.

    Where the outputs of two bands overlap, their sum is taken, with the lower band's bias.

    Parameters
    ----------
    make : callable
        Makes one layer with ``freq``, whose kernel is twice its stride, each time it is called.
    ratios : sequence of float
        Where to split, as shares of the bins, rising.
    bins, stride : int
        Of the input; of the layer.
    last : bool
        Outermost: no activation follows.

    Raises
    ------
    ValueError
        A band would be empty.
    """

    def __init__(
        self,
        make: Callable[[], DecoderLayer],
        ratios: Sequence[float],
        *,
        bins: int,
        stride: int,
        last: bool,
    ) -> None:
        super().__init__()
        self.stride, self.last = stride, last
        limits = [0, *(round(bins * ratio) for ratio in ratios), bins]
        self.bands = list(pairwise(limits))
        if any(low >= high for low, high in self.bands):
            raise ValueError(f"bands split at {list(ratios)} of {bins} bins are too narrow")
        self.layers = nn.ModuleList(make() for _ in self.bands)

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None,
        _length: int,
        outputs: Sequence[int] | None = None,
    ) -> tuple[Tensor, None]:
        """Decode (batch, channels, bins, columns); nobody needs what was before."""
        stride = self.stride
        layers: Iterable[Any] = self.layers
        joined = x if skip is None else x + skip
        pieces: list[Tensor] = []
        for layer, (low, high) in zip(layers, self.bands, strict=True):
            piece = layer.unfold(layer.gather(joined[:, :, low:high], None), outputs)
            if pieces:
                overlap = piece[:, :, :stride] - layer.bias(outputs)[:, None, None]
                pieces[-1][:, :, -stride:] += overlap
                piece = piece[:, :, stride:]
            pieces.append(piece)
        whole = torch.cat(pieces, dim=2)[:, :, stride // 2 : -(stride // 2)]
        return (whole if self.last else F.gelu(whole)), None


def _stack(items: list[Tensor]) -> Tensor:
    """Make (batch, channels, bins, columns) of (bins, channels, columns); one is not copied."""
    batch = items[0][None] if len(items) == 1 else torch.stack(items)
    return batch.transpose(1, 2)


def _norm(norm: bool, groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if norm else nn.Identity()


def _rewrite(
    freq: bool, channels: int, context: int, *, across: bool = True
) -> nn.Conv1d | nn.Conv2d:
    """Make the convolution before a GLU; `across`: its context reaches across bins too."""
    kernel_size = 2 * context + 1
    if not freq:
        return nn.Conv1d(channels, 2 * channels, kernel_size, padding=context)
    if across:
        return nn.Conv2d(channels, 2 * channels, kernel_size, padding=context)
    return nn.Conv2d(channels, 2 * channels, (1, kernel_size), padding=(0, context))


def _along_time(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module for sequences to a waveform, or to each bin of a spectrogram."""
    if x.dim() == 3:
        y: Tensor = module(x)
        return y
    batch, channels, bins, columns = x.shape
    rows = x.transpose(1, 2).reshape(batch * bins, channels, columns)
    y = module(rows)
    return y.view(batch, bins, channels, columns).transpose(1, 2)
