"""A bidirectional LSTM whose weights are larger than the processor's cache.

Each step of such an LSTM reads all of its recurrent weights from memory, and that takes longer
than to multiply by them: the 2 048 channels of the published version 2 have 67 MB for each
direction of each layer. Several sequences side by side read them once for all. torch's own LSTM
on a processor gains little from that, and keeps reordered copies of the weights besides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["is_wide", "read_wide"]

WIDE_CHANNELS = 1024


def is_wide(lstm: nn.LSTM, x: Tensor) -> bool:
    """Whether :func:`read_wide` is the better way: on a processor, and nobody wants gradients."""
    wide = lstm.hidden_size >= WIDE_CHANNELS and lstm.bidirectional
    return wide and x.device.type == "cpu" and not torch.is_grad_enabled()


def read_wide(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Give the same as ``lstm(x)[0]``: (steps, batch, channels) to (steps, batch, 2 * hidden)."""
    x = x.contiguous()  # or else products are made step by step
    for layer in range(lstm.num_layers):
        forth = _read_direction(lstm, f"l{layer}", x, backwards=False)
        back = _read_direction(lstm, f"l{layer}_reverse", x, backwards=True)
        x = torch.cat([forth, back], dim=-1)
    return x


def _read_direction(lstm: nn.LSTM, name: str, x: Tensor, *, backwards: bool) -> Tensor:
    """Run one direction of one layer: (steps, batch, channels) to (steps, batch, hidden)."""
    bias = sum(getattr(lstm, f"bias_{kind}_{name}").to(x.dtype) for kind in ("ih", "hh"))
    steps, batch, _ = x.shape  # heard: (steps, batch, 4 * hidden)
    hidden = lstm.hidden_size
    # Weights may be in half precision (models.widening); one at a time is widened.
    heard = F.linear(x, getattr(lstm, f"weight_ih_{name}").to(x.dtype), bias)
    recur = _product_with(getattr(lstm, f"weight_hh_{name}").to(x.dtype), batch)
    state, cell = x.new_zeros(batch, hidden), x.new_zeros(batch, hidden)
    states = x.new_empty(steps, batch, hidden)
    for step in range(steps - 1, -1, -1) if backwards else range(steps):
        gates = recur(state).add_(heard[step])  # (batch, 4 * hidden): input, forget, cell, output
        take, keep, offer, give = gates.chunk(4, dim=1)
        cell = cell.mul_(keep.sigmoid_()).addcmul_(take.sigmoid_(), offer.tanh_())
        torch.mul(give.sigmoid_(), cell.tanh(), out=states[step])
        state = states[step]
    return states


def _product_with(weight: Tensor, batch: int) -> Callable[[Tensor], Tensor]:
    """Give a function from (batch, columns) to (batch, rows): the product with `weight`.

    A few columns at a time are not what ordinary matrix products are made for: oneDNN, given the
    weights in its own order, takes half their time.
    """
    if batch == 1 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")
