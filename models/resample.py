"""Doubling and halving the sample rate, as the waveform Demucs does around its network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Resample2x"]


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
        return torch.cat([self._resample(item) for item in x.unbind()])  # one by one, for memory

    def _resample(self, x: Tensor) -> Tensor:
        """Resample (channels, frames) to (1, channels, frames)."""
        channels, frames = x.shape
        x = F.pad(x[:, None], (self.width, self.width + self.stride), mode="replicate")
        y = F.conv1d(x, self.kernel, stride=self.stride)  # (channels, phases, steps)
        y = y.transpose(1, 2).reshape(1, channels, -1)
        return y[..., : frames * self.kernel.shape[0] // self.stride]
