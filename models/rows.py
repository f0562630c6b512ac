"""Frequency layers on rows: spectrograms as (freqs, channels, hops), one row a frequency.

In this order a convolution over frequency reads whole neighbouring rows, which lie behind each
other in memory: it is a batched matrix product on overlapping views, and nothing has to be
gathered. What else a layer does stays within a row. So a layer can run on a few rows at a time,
from its first convolution to its last, while they are in the processor's cache
(:func:`blocks_of_rows`); only its input and its output cross the memory bus.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "blocks_of_rows",
    "frequency_conv",
    "frequency_conv_transpose",
    "hop_conv",
    "lay_out",
    "on_rows",
    "plane_conv",
    "pointwise_conv",
]

CACHE_BYTES = 1 << 24  # of one activation: less, and cores wait for each other more than they gain


def on_rows(x: Tensor) -> bool:
    """Whether to compute `x` by rows: on a processor, and nobody wants gradients."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def blocks_of_rows(rows: int, row_values: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of rows that fit the cache, `row_values` numbers a row."""
    step = max(1, CACHE_BYTES // (4 * row_values))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def frequency_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, start: int, stop: int
) -> Tensor:
    """Convolve over frequency; of the result, only rows `start` to `stop`.

    Parameters
    ----------
    x : Tensor
        (freqs, channels in, hops), contiguous.
    weight : Tensor
        (channels out, channels in, kernel size, 1), as of a ``Conv2d``.
    bias : Tensor, optional
        (channels out,).
    stride, padding : int
        In frequencies; padding is with zeros, at both ends.
    start, stop : int
        Rows of the output to compute.

    Returns
    -------
    Tensor
        (stop - start, channels out, hops).
    """
    freqs, channels, hops = x.shape
    channels_out, _, kernel_size, _ = weight.shape
    first = start * stride - padding
    last = (stop - 1) * stride - padding + kernel_size
    heard = x[max(first, 0) : last]  # (freqs heard, channels in, hops)
    if first < 0 or last > freqs:
        heard = F.pad(heard, (0, 0, 0, 0, max(0, -first), max(0, last - freqs)))
    row = channels * hops
    columns = heard.as_strided(
        (stop - start, kernel_size * channels, hops),
        (stride * row, hops, 1),
        heard.storage_offset(),
    )
    matrix = weight[..., 0].transpose(1, 2).reshape(channels_out, kernel_size * channels)
    y = torch.bmm(matrix.expand(stop - start, -1, -1), columns)  # (rows, channels out, hops)
    return y if bias is None else y.add_(bias[:, None])


def frequency_conv_transpose(y: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve transposed over frequency, for kernels of two strides.

    Parameters
    ----------
    y : Tensor
        (freqs + 1, channels in, hops), contiguous: the row before the first, and the rows.
    weight : Tensor
        (channels in, channels out, 2 * stride, 1), as of a ``ConvTranspose2d``.
    bias : Tensor, optional
        (channels out,).
    stride : int
        Output rows for each input row.

    Returns
    -------
    Tensor
        (freqs * stride, channels out, hops): what the transposed convolution gives from the first
        row (not the one before) on, as far as no later row adds to it.
    """
    freqs, channels, hops = y.shape[0] - 1, *y.shape[1:]
    channels_out = weight.shape[1]
    matrix = weight[..., 0].permute(2, 1, 0).reshape(2, stride * channels_out, channels)
    x = torch.bmm(matrix[0].expand(freqs, -1, -1), y[1:])  # (freqs, stride * channels out, hops)
    x.baddbmm_(matrix[1].expand(freqs, -1, -1), y[:-1])
    x = x.view(freqs * stride, channels_out, hops)
    return x if bias is None else x.add_(bias[:, None])


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the channels of (rows, channels in, hops): (rows, channels out, hops).

    `weight` is (channels out, channels in) with any number of dimensions of size 1 behind.
    """
    y = torch.bmm(weight.flatten(1).expand(x.shape[0], -1, -1), x)
    return y if bias is None else y.add_(bias[:, None])


def hop_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Convolve over time by a kernel of size 3, to few channels; the length stays.

    One product gives what each tap makes of each hop; being few channels, they are cheap to shift
    and add. `x` is (rows, channels in, hops), `weight` (channels out, channels in, 3) as of a
    ``Conv1d``; the result is (rows, channels out, hops).
    """
    rows, channels, _ = x.shape
    channels_out = weight.shape[0]
    matrix = weight.permute(2, 0, 1).reshape(3 * channels_out, channels)
    taps = torch.bmm(matrix.expand(rows, -1, -1), x)  # (rows, 3 * channels out, hops)
    before, here, after = taps.chunk(3, dim=1)
    y = here + bias[:, None]
    y[..., dilation:] += before[..., :-dilation]
    y[..., :-dilation] += after[..., dilation:]
    return y


def plane_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve over frequency and time at stride 1, without padding.

    Parameters
    ----------
    x : Tensor
        (freqs + kernel freqs - 1, channels in, hops + kernel hops - 1), contiguous.
    weight : Tensor
        (channels out, channels in, kernel freqs, kernel hops), as of a ``Conv2d``.
    bias : Tensor, optional
        (channels out,).

    Returns
    -------
    Tensor
        (freqs, channels out, hops).
    """
    channels_out, channels, kernel_freqs, kernel_hops = weight.shape
    rows, hops = x.shape[0] - kernel_freqs + 1, x.shape[2] - kernel_hops + 1
    # (kernel hops, channels out, kernel freqs * channels in)
    matrix = weight.permute(3, 0, 2, 1).reshape(kernel_hops, channels_out, kernel_freqs * channels)
    row = channels * x.shape[2]

    def columns(shift: int) -> Tensor:
        size, strides = (rows, kernel_freqs * channels, hops), (row, x.shape[2], 1)
        return x.as_strided(size, strides, x.storage_offset() + shift)

    y = torch.bmm(matrix[0].expand(rows, -1, -1), columns(0))
    for shift in range(1, kernel_hops):
        y.baddbmm_(matrix[shift].expand(rows, -1, -1), columns(shift))
    return y if bias is None else y.add_(bias[:, None])


def lay_out(weight: Tensor, *order: int) -> Tensor:
    """Return the same tensor with its dimensions in memory in the given order.

    The functions here take weights as the field names and shapes them, and need them in another
    order; with that order in memory already, reordering them costs nothing at each call.
    """
    inverse = [order.index(dimension) for dimension in range(len(order))]
    return weight.permute(order).contiguous().permute(inverse)
