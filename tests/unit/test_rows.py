"""Layers by rows and by stretches against torch's convolutions on the whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models import rows
from models.hybrid import DecoderLayer, EncoderLayer
from models.rows import (
    frequency_conv,
    frequency_conv_transpose,
    hop_conv,
    lay_out,
    plane_conv,
    pointwise_conv,
)


def spectrogram(channels: int = 6, bins: int = 32, columns: int = 11) -> torch.Tensor:
    return torch.randn(1, channels, bins, columns, generator=torch.Generator().manual_seed(3))


def by_rows(x: torch.Tensor) -> torch.Tensor:
    return x[0].transpose(0, 1).contiguous()


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).abs().max() < 1e-4)


@pytest.mark.parametrize("span", [(0, 8), (0, 1), (1, 7), (3, 8), (7, 8)])
def test_frequency_conv(span: tuple[int, int]) -> None:
    x, weight, bias = spectrogram(), torch.randn(10, 6, 8, 1), torch.randn(10)
    whole = by_rows(F.conv2d(x, weight, bias, (4, 1), (2, 0)))
    assert close(frequency_conv(by_rows(x), weight, bias, 4, 2, *span), whole[slice(*span)])


def test_frequency_conv_transpose() -> None:
    x, weight, bias = spectrogram(), torch.randn(6, 10, 8, 1), torch.randn(10)
    whole = by_rows(F.conv_transpose2d(x, weight, bias, (4, 1)))
    silence = torch.zeros(1, 6, 11)
    padded = torch.cat([silence, by_rows(x), silence])
    assert close(frequency_conv_transpose(padded, weight, bias, 4), whole)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (1, 1), (5, 5)])
def test_plane_conv(kernel: tuple[int, int]) -> None:
    x, weight, bias = spectrogram(), torch.randn(12, 6, *kernel), torch.randn(12)
    assert close(plane_conv(by_rows(x), weight, bias), by_rows(F.conv2d(x, weight, bias)))


@pytest.mark.parametrize("dilation", [1, 2, 4, 16])
def test_hop_conv(dilation: int) -> None:
    x, weight, bias = by_rows(spectrogram()), torch.randn(3, 6, 3), torch.randn(3)
    whole = F.conv1d(x, weight, bias, padding=dilation, dilation=dilation)
    assert close(hop_conv(x, weight, bias, dilation), whole)


def test_pointwise_conv() -> None:
    x, weight, bias = by_rows(spectrogram()), torch.randn(3, 6, 1), torch.randn(3)
    assert close(pointwise_conv(x, weight, bias), F.conv1d(x, weight, bias))


def test_lay_out_changes_memory_only() -> None:
    weight = torch.randn(10, 6, 8, 1)
    laid_out = lay_out(weight, 0, 2, 1, 3)
    assert torch.equal(laid_out, weight)
    assert laid_out.permute(0, 2, 1, 3).is_contiguous()


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_by_rows_equal_whole_layers(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int, batch: int
) -> None:
    """Layers compute by rows where nobody wants gradients, and as a whole elsewhere."""
    columns = 21
    monkeypatch.setattr(rows, "CACHE_BYTES", rows_at_once * 4 * 2 * 16 * columns)
    torch.manual_seed(5)
    branches = {"depth": 2, "compress": 4, "init": 0.5}
    encode = EncoderLayer(6, 16, norm=False, dconv_kw=branches)
    decode = DecoderLayer(16, 6, norm=False, dconv_kw=branches)
    x = torch.randn(batch, 6, 32, columns)
    encoded = encode(x)
    skip = torch.randn(batch, 16, 8, columns)
    decoded, before = decode(encoded, skip, columns)
    wanted = decode(encoded, skip, columns, [4, 1])[0]
    assert before is not None  # the whole layer
    with torch.inference_mode():
        encoded_by_rows = encode(x)
        decoded_by_rows, nothing = decode(encoded, skip, columns)
        wanted_by_rows = decode(encoded, skip, columns, [4, 1])[0]
    assert nothing is None  # by rows
    assert close(encoded_by_rows, encoded)
    assert close(decoded_by_rows, decoded)
    assert close(wanted_by_rows, wanted)
