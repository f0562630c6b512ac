"""Layers whose weights may stay in half precision, as files store them.

They compute in the precision of their input: the weights are widened for each call and forgotten
after it. For the largest networks that halves what their weights take, and costs little beside
what is done with them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["WideningConv1d", "WideningConvTranspose1d", "WideningLinear", "may_stay_half"]

LEAST_VALUES = 1 << 20  # of a weight; below it, nothing is to be gained


class WideningConv1d(nn.Conv1d):
    """A ``Conv1d`` without groups, which widens its weights to its input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels in, steps) to (batch, channels out, steps)."""
        weight = self.weight.to(x.dtype)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class WideningConvTranspose1d(nn.ConvTranspose1d):
    """An uncut ``ConvTranspose1d``, which widens its weights to its input's precision."""

    def forward(self, x: Tensor, _output_size: list[int] | None = None) -> Tensor:
        """Map (batch, channels in, steps) to (batch, channels out, steps)."""
        return F.conv_transpose1d(x, self.weight.to(x.dtype), self.bias, self.stride)


class WideningLinear(nn.Linear):
    """A ``Linear``, which widens its weights to its input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def may_stay_half(network: nn.Module) -> set[str]:
    """Name the weights of a network that may stay in half precision on a processor."""
    names = set()
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, WideningConv1d | WideningConvTranspose1d | WideningLinear):
            names.add(f"{prefix}weight")
        elif getattr(module, "widens_weights", False):  # an LSTM that is read step by step
            names.update(prefix + name for name, _ in module.named_parameters())
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return {name for name in names if sizes[name] >= LEAST_VALUES}
