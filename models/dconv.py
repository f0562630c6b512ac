"""The residual branches inside the layers of Demucs version 3 and later.

Papers
------
Défossez, "Hybrid Spectrogram and Waveform Source Separation" (2021),
https://arxiv.org/abs/2111.03600, section 4.2 -- the branches, with their LSTM and local attention.
Touvron et al., "Going deeper with Image Transformers" (2021), https://arxiv.org/abs/2103.17239 --
the layer scales.

The names of the parameters (positions in a row of modules) are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lstm import BLSTM
from models.rows import hop_conv, on_rows
from models.stretches import stretches

__all__ = ["DConv", "LayerScale", "LocalState"]

KERNEL_SIZE = 3
LSTM_LAYERS = 2
LSTM_CHUNK_STEPS = 200
SELF_EXPONENT = -100.0  # of a step looking at itself: next to nothing, unless it is alone


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first: what a branch adds to its trunk."""

    def __init__(self, channels: int, init: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (batch, channels, steps)."""
        return x * self.scale[:, None]


class LocalState(nn.Module):
    """Attention over time that fades with the distance, at a rate each step chooses.

    A step `s` weighs step `t` by ``softmax(q_s . k_t / sqrt(c) - |t - s| g_s)``, where `g_s` is a
    sum of `ndecay` gates, the n-th counting n-fold. No step attends to itself.
    """

    def __init__(self, channels: int, heads: int = 4, ndecay: int = 4) -> None:
        super().__init__()
        if heads <= 0 or channels % heads:
            raise ValueError(f"local attention: {channels} channels do not divide by {heads} heads")
        self.heads = heads
        self.content = nn.Conv1d(channels, channels, 1)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key = nn.Conv1d(channels, channels, 1)
        self.query_decay = nn.Conv1d(channels, heads * ndecay, 1)
        # The gates start almost closed, which lets a step see as far as possible.
        with torch.no_grad():
            self.query_decay.weight.mul_(0.01)
            self.query_decay.bias.fill_(-2)  # type: ignore[union-attr]
        self.proj = nn.Conv1d(channels, channels, 1)
        counts = torch.arange(1, ndecay + 1).float() / (2 * math.sqrt(ndecay))
        self.counts: Tensor
        self.register_buffer("counts", counts[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, steps) to the same shape; the input is added."""
        query = self._by_head(self.query(x))
        key = self._by_head(self.key(x))
        content = self._by_head(self.content(x))
        bias = self._bias(x)
        to_itself = (query * key).sum(dim=-1) / math.sqrt(key.shape[-1])  # (batch, heads, steps)
        bias.diagonal(dim1=-2, dim2=-1).copy_(SELF_EXPONENT - to_itself)
        result = F.scaled_dot_product_attention(query, key, content, attn_mask=bias)
        projected: Tensor = self.proj(result.transpose(2, 3).reshape(x.shape))
        return x + projected

    def _by_head(self, x: Tensor) -> Tensor:
        """Turn (batch, channels, steps) into (batch, heads, steps, channels / heads)."""
        return x.view(len(x), self.heads, -1, x.shape[-1]).transpose(2, 3)

    def _bias(self, x: Tensor) -> Tensor:
        """Find what distance takes off the exponents: (batch, heads, asking, asked steps)."""
        batch, _, steps = x.shape
        gates = torch.sigmoid(self.query_decay(x)).view(batch, self.heads, -1, steps)
        fading = (gates * self.counts).sum(dim=2)  # (batch, heads, steps)
        indices = torch.arange(steps, device=x.device, dtype=x.dtype)
        bias: Tensor = fading[..., None] * -(indices[:, None] - indices).abs()
        return bias


class DConv(nn.Module):
    """A row of residual branches, each of dilated convolutions on few channels.

    Parameters
    ----------
    channels : int
        Of input and output.
    compress : float
        A branch works on ``int(channels / compress)`` channels.
    depth : int
        Number of branches; the n-th looks at steps ``2**n`` apart (1 apart if `depth` is negative).
    init : float
        What the layer scales start at.
    norm : bool
        Normalise after each convolution.
    attn, lstm : bool
        Give each branch local attention of `heads` heads with `ndecay` gates each; an LSTM.
    gelu : bool
        Activation: GELU, or else ReLU.
    """

    def __init__(
        self,
        channels: int,
        *,
        compress: float = 4,
        depth: int = 2,
        init: float = 1e-4,
        norm: bool = True,
        attn: bool = False,
        heads: int = 4,
        ndecay: int = 4,
        lstm: bool = False,
        gelu: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(channels / compress)
        self.layers = nn.ModuleList()
        for index in range(abs(depth)):
            dilation = 2**index if depth > 0 else 1
            layer = nn.Sequential(
                nn.Conv1d(channels, hidden, KERNEL_SIZE, padding=dilation, dilation=dilation),
                nn.GroupNorm(1, hidden) if norm else nn.Identity(),
                nn.GELU() if gelu else nn.ReLU(),
            )
            if lstm:
                layer.append(BLSTM(hidden, LSTM_LAYERS, LSTM_CHUNK_STEPS, skip=True))
            if attn:
                layer.append(LocalState(hidden, heads, ndecay))
            layer.append(nn.Conv1d(hidden, 2 * channels, 1))
            layer.append(nn.GroupNorm(1, 2 * channels) if norm else nn.Identity())
            layer.append(nn.GLU(dim=1))
            layer.append(LayerScale(channels, init))
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, steps) to the same shape.

        On a processor, where nobody wants gradients, the input is overwritten.
        """
        layers: Iterable[Any] = self.layers
        for layer in layers:
            narrow, norm1, activation, *middle, widen, norm2, glu, scale = layer
            y = _narrow(x, narrow) if on_rows(x) else narrow(x)
            y = activation(norm1(y))  # (batch, channels / compress, steps)
            for module in middle:
                y = module(y)
            if on_rows(x) and isinstance(norm2, nn.GroupNorm):
                _add_widened(x, y, widen, norm2, scale.scale)
            else:
                x = torch.addcmul(x, glu(norm2(widen(y))), scale.scale[:, None])
        return x


def _narrow(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Apply a branch's first convolution in stretches: (batch, few, steps)."""
    dilation, bias = conv.dilation[0], cast("Tensor", conv.bias)
    batch, _, steps = x.shape
    few = conv.out_channels
    y = x.new_empty(batch, few, steps)
    for start, stop in stretches(steps, 3 * batch * few):
        first, last = max(start - dilation, 0), min(stop + dilation, steps)
        heard = hop_conv(x[..., first:last], conv.weight, bias, dilation)
        y[..., start:stop] = heard[..., start - first : stop - first]
    return y


def _add_widened(x: Tensor, y: Tensor, widen: nn.Conv1d, norm: nn.GroupNorm, scale: Tensor) -> None:
    """Add ``scale * glu(norm(widen(y)))`` to `x`, in stretches.

    Mean and variance of the many channels follow from those of the few they are made of, so the
    normalisation becomes part of the weights, for each item of the batch its own; and so does the
    scale. `y` is (batch, few, steps), `x` (batch, channels, steps).
    """
    batch, few, steps = y.shape
    weight, bias = widen.weight[..., 0], cast("Tensor", widen.bias)  # (many, few), (many,)
    mean_few = y.mean(dim=-1)  # (batch, few)
    y = y - mean_few[..., None]
    covariance = torch.bmm(y, y.transpose(1, 2)) / steps  # (batch, few, few)
    means = torch.addmm(bias, mean_few, weight.t())  # (batch, many)
    mean = means.mean(dim=-1, keepdim=True)  # (batch, 1)
    within = (covariance * (weight.t() @ weight)).sum(dim=(1, 2)) / len(weight)
    between = (means - mean).square().mean(dim=-1)
    rate = torch.rsqrt(within + between + norm.eps)[:, None]  # (batch, 1)
    gain = torch.cat([scale, torch.ones_like(scale)])  # (many,): the GLU's gates are not scaled
    combined = y.new_empty(batch, len(weight), few + 1)
    combined[..., :few] = weight * (gain * norm.weight)[:, None] * rate[..., None]
    combined[..., few] = gain * ((means - mean) * rate * norm.weight + norm.bias)
    for start, stop in stretches(steps, batch * len(weight)):
        ones = y.new_ones(batch, 1, stop - start)
        wide = torch.bmm(combined, torch.cat([y[..., start:stop], ones], dim=1))
        x[..., start:stop] += F.glu(wide, dim=1)
