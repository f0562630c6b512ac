"""A bidirectional LSTM over time, on the whole sequence or on overlapping chunks of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recurrence import WIDE_CHANNELS, is_wide, read_wide
from models.widening import WideningLinear

__all__ = ["BLSTM"]


class BLSTM(nn.Module):
    """A bidirectional LSTM, projected back to as many channels as came in.

    Parameters
    ----------
    channels : int
        Of the input, of each direction and of the output.
    layers : int
        LSTMs on top of each other.
    max_steps : int, optional
        Sequences longer than this are read in chunks of this many steps, each half over the one
        before, all at once. Of a chunk the middle half is kept, whose steps have at least a
        quarter of a chunk to look at on either side. A multiple of 4.
    skip : bool
        Add the input to the output.
    """

    def __init__(
        self, channels: int, layers: int = 1, max_steps: int | None = None, skip: bool = False
    ) -> None:
        super().__init__()
        if max_steps is not None and (max_steps <= 0 or max_steps % 4):
            raise ValueError(f"max_steps must be a multiple of 4, not {max_steps}")
        self.max_steps = max_steps
        self.skip = skip
        self.lstm = nn.LSTM(channels, channels, num_layers=layers, bidirectional=True)
        self.linear = WideningLinear(2 * channels, channels)
        self.lstm.widens_weights = channels >= WIDE_CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, steps) to the same shape."""
        if self.max_steps is not None and x.shape[-1] > self.max_steps:
            y = self._in_chunks(x, self.max_steps)
        else:
            y = self._read(x.permute(2, 0, 1)).permute(1, 2, 0)
        return x + y if self.skip else y

    def _read(self, x: Tensor) -> Tensor:
        """Map (steps, batch, channels) to the same shape."""
        y = read_wide(self.lstm, x) if is_wide(self.lstm, x) else self.lstm(x)[0]
        projected: Tensor = self.linear(y)
        return projected

    def _in_chunks(self, x: Tensor, width: int) -> Tensor:
        """Map (batch, channels, steps) to the same shape, in chunks of `width` steps."""
        batch, channels, steps = x.shape
        stride, margin = width // 2, width // 4
        count = math.ceil(steps / stride)
        x = F.pad(x, (0, (count - 1) * stride + width - steps))
        x = x.unfold(-1, width, stride)  # (batch, channels, count, width)
        x = self._read(x.permute(3, 0, 2, 1).reshape(width, batch * count, channels))
        x = x.view(width, batch, count, channels).permute(1, 3, 2, 0)
        start = x[:, :, 0, :margin]
        middles = x[..., margin : margin + stride].flatten(-2)  # (batch, channels, count * stride)
        return torch.cat([start, middles], dim=-1)[..., :steps]
