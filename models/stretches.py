"""Convolutional layers on stretches of time, of which only input and output are ever whole.

What a layer of plain convolutions makes of a step depends on a few steps around it. So the layer
can run from its first operation to its last on one stretch after the other, each with the steps
around it that it needs: what it holds in between is small, and stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

__all__ = ["decode_in_stretches", "encode_in_stretches"]

CACHE_BYTES = 1 << 22  # of the widest activation between input and output


def encode_in_stretches(
    layer: Callable[[Tensor], Tensor], x: Tensor, kernel_size: int, stride: int, channels: int
) -> Tensor:
    """Apply a layer that opens with an unpadded strided convolution, step by step after it.

    Parameters
    ----------
    layer : callable
        (batch, channels in, steps) to (batch, `channels`, (steps - kernel_size) / stride + 1).
    x : Tensor
        (batch, channels in, steps).
    kernel_size, stride : int
        Of the convolution that it opens with.
    channels : int
        Of the output; in between there may be twice as many.
    """
    batch, _, steps = x.shape
    encoded = x.new_empty(batch, channels, (steps - kernel_size) // stride + 1)
    for start, stop in _stretches(encoded.shape[-1], 2 * batch * channels):
        heard = x[..., start * stride : (stop - 1) * stride + kernel_size]
        encoded[..., start:stop] = layer(heard)
    return encoded


def decode_in_stretches(
    gather: Callable[[Tensor], Tensor],
    unfold: Callable[[Tensor], Tensor],
    x: Tensor,
    skip: Callable[[int, int], Tensor],
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
    skip : callable
        Gives steps `start` to `stop` of what is added to `x`.
    """
    batch, width, steps = x.shape
    decoded = x.new_empty(batch, channels, (steps + 1) * stride)
    for start, stop in _stretches(steps, 2 * batch * width):
        # One step earlier, because the kernel of the step before reaches into this stretch.
        before = max(start - 1, 0)
        first, last = max(before - context, 0), min(stop + context, steps)
        y = gather(x[..., first:last] + skip(first, last))[..., before - first : stop - first]
        y = unfold(y)[..., (start - before) * stride :]
        end = stop * stride if stop < steps else decoded.shape[-1]
        decoded[..., start * stride : end] = y[..., : end - start * stride]
    return decoded


def _stretches(steps: int, values: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of stretches, with `values` numbers at each step, that fit the cache."""
    length = max(64, CACHE_BYTES // (4 * values))
    for start in range(0, steps, length):
        yield start, min(start + length, steps)
