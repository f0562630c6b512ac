"""Convolutional layers on stretches of time, of which only input and output are ever whole.

What a layer of plain convolutions makes of a step depends on a few steps around it. So the layer
can run from its first operation to its last on one stretch after the other, each with the steps
around it that it needs: what it holds in between is small, and stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.nn import functional as F

__all__ = ["decode_in_stretches", "encode_in_stretches", "gather_in_stretches", "stretches"]

CACHE_BYTES = 1 << 22  # of the widest activation between input and output


def encode_in_stretches(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    kernel_size: int,
    stride: int,
    channels: int,
    padding: int = 0,
) -> Tensor:
    """Apply a layer that opens with a strided convolution, step by step after it.

    Parameters
    ----------
    layer : callable
        (batch, channels in, steps) to (batch, `channels`, (steps - kernel_size) / stride + 1).
    x : Tensor
        (batch, channels in, steps).
    kernel_size, stride : int
        Of the convolution that it opens with, which itself pads nothing.
    channels : int
        Of the output; in between there may be twice as many.
    padding : int
        Steps of silence to put on each side of `x`.
    """
    batch, _, steps = x.shape
    count = (steps + 2 * padding - kernel_size) // stride + 1
    encoded = x.new_empty(batch, channels, count)
    for start, stop in stretches(count, 2 * batch * channels):
        first = start * stride - padding
        last = (stop - 1) * stride - padding + kernel_size
        heard = x[..., max(first, 0) : last]
        if first < 0 or last > steps:
            heard = F.pad(heard, (max(0, -first), max(0, last - steps)))
        encoded[..., start:stop] = layer(heard)
    return encoded


def gather_in_stretches(
    layer: Callable[[Tensor], Tensor], x: Tensor, skip: Tensor | None, *, context: int
) -> Tensor:
    """Apply a layer that keeps shape, and sees `context` steps on either side, to ``x + skip``.

    Beyond the ends there is silence. (batch, channels, steps) becomes the same; without context
    and without a skip, `x` itself is overwritten.
    """
    batch, channels, steps = x.shape
    in_place = context == 0 and skip is None
    gathered = x if in_place else x.new_empty(batch, channels, steps)
    for start, stop in stretches(steps, 2 * batch * channels):
        first, last = max(start - context, 0), min(stop + context, steps)
        heard = x[..., first:last]
        if skip is not None:
            heard = heard + skip[..., first:last]
        gathered[..., start:stop] = layer(heard)[..., start - first : stop - first]
    return gathered


def decode_in_stretches(
    gather: Callable[[Tensor], Tensor],
    unfold: Callable[[Tensor], Tensor],
    x: Tensor,
    skip: Callable[[int, int], Tensor] | None,
    *,
    context: int,
    stride: int,
    channels: int,
) -> Tensor:
    """Apply a layer that closes with an uncut transposed convolution of two strides' kernel.

    Parameters
    ----------
    gather : callable
        The layer up to that convolution: (batch, channels in, steps) to as many steps, of which
        each depends on `context` steps on either side; beyond the ends there is silence.
    unfold : callable
        The convolution and what follows it: (batch, channels in, steps) to (batch, `channels`,
        (steps + 1) * stride).
    x : Tensor
        (batch, channels in, steps).
    skip : callable, optional
        Gives steps `start` to `stop` of what is added to `x`.
    """
    batch, width, steps = x.shape
    decoded = x.new_empty(batch, channels, (steps + 1) * stride)
    for start, stop in stretches(steps, 2 * batch * width):
        # One step earlier, because the kernel of the step before reaches into this stretch.
        before = max(start - 1, 0)
        first, last = max(before - context, 0), min(stop + context, steps)
        y = x[..., first:last]
        if skip is not None:
            y = y + skip(first, last)
        y = gather(y)[..., before - first : stop - first]
        y = unfold(y)[..., (start - before) * stride :]
        end = stop * stride if stop < steps else decoded.shape[-1]
        decoded[..., start * stride : end] = y[..., : end - start * stride]
    return decoded


def stretches(steps: int, values: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of stretches, with `values` numbers at each step, that fit the cache."""
    length = max(64, CACHE_BYTES // (4 * values))
    for start in range(0, steps, length):
        yield start, min(start + length, steps)
