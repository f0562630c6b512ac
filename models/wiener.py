"""From magnitudes of the stems to their spectrograms, with the mixture's help.

Papers
------
Nugraha, Liutkus, Vincent, "Multichannel music separation with deep neural networks" (EUSIPCO
2016) -- the expectation maximization below.
Uhlich et al., "Improving music source separation based on deep neural networks through data
augmentation and network blending" (ICASSP 2017).
Stöter et al., "Open-Unmix" (JOSS 2019) -- the constants, and the window of 300 columns, of the
implementation that the published networks were trained with.

A stem is modelled as Gaussian: in each bin and column with a power of its own, in each bin with
one covariance between the channels for all columns of a window. The two are found in turns from
the stems, and the stems from the two and the mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PHASE_ONLY", "needs_all_stems", "resynthesize"]

PHASE_ONLY = -1  # iterations: give magnitudes the mixture's phase, weak bins less than their due
WINDOW_COLUMNS = 300
EPSILON = 1e-10
LOUDEST = 10.0  # what louder windows are scaled down to

Matrix = list[list[Tensor]]


def needs_all_stems(iterations: int) -> bool:
    """Tell whether a stem's spectrogram depends on the other stems' magnitudes."""
    return iterations > 0


def resynthesize(
    magnitudes: Tensor, mixture: Tensor, iterations: int, *, residual: bool = False
) -> Tensor:
    """Estimate the spectrograms of stems.

    Parameters
    ----------
    magnitudes : Tensor
        (batch, stems, channels, bins, columns), float32; what a network says the stems' magnitudes
        are (it may say negative ones).
    mixture : Tensor
        (batch, channels, bins, columns), complex64.
    iterations : int
        Of expectation maximization, with which 1 or 2 channels are possible. 0 gives the
        magnitudes the mixture's phase; so does :data:`PHASE_ONLY`, but for almost silent bins.
    residual : bool
        Let expectation maximization have one more stem, of what the others leave of the mixture.

    Returns
    -------
    Tensor
        (batch, stems, channels, bins, columns), complex64.
    """
    if iterations < 0:
        return magnitudes * (mixture / (1e-8 + mixture.abs()))[:, None]
    # A bin of nothing counts as 1 from here on, as it did when the networks were trained.
    mixture = torch.where(mixture == 0, 1.0, mixture)
    stems = magnitudes * (mixture / mixture.abs())[:, None]
    if iterations == 0:
        return stems
    for heard, estimates in zip(mixture, stems, strict=True):
        for start in range(0, mixture.shape[-1], WINDOW_COLUMNS):
            window = slice(start, start + WINDOW_COLUMNS)
            estimates[..., window] = _refine(
                estimates[..., window], heard[..., window], iterations, residual
            )
    return stems


def _refine(stems: Tensor, mixture: Tensor, iterations: int, residual: bool) -> Tensor:
    """Refine one window: stems (stems, channels, bins, columns), mixture the same without stems."""
    count = len(stems)
    if residual:
        stems = torch.cat([stems, (mixture - stems.sum(dim=0))[None]])
    scale = (mixture.abs().max() / LOUDEST).clamp(min=1.0)
    mixture, stems = mixture / scale, stems / scale
    for _ in range(iterations):
        stems = _maximize(stems, mixture)
    return stems[:count] * scale


def _maximize(stems: Tensor, mixture: Tensor) -> Tensor:
    """Do one iteration: find powers and covariances, then the stems again."""
    powers = (stems.real**2 + stems.imag**2).mean(dim=1)  # (stems, bins, columns)
    covariances = [_covariance(stem, power) for stem, power in zip(stems, powers, strict=True)]
    channels = range(len(mixture))
    total: Matrix = [
        [torch.full_like(mixture[0], EPSILON**0.5 if i == j else 0.0) for j in channels]
        for i in channels
    ]
    for power, covariance in zip(powers, covariances, strict=True):
        for i in channels:
            for j in channels:
                total[i][j] += power * covariance[i][j]
    inverse = _invert(total)
    refined = torch.zeros_like(stems)
    for stem, power, covariance in zip(refined, powers, covariances, strict=True):
        for i in channels:
            for j in channels:
                gain = sum(covariance[i][k] * inverse[k][j] for k in channels)
                stem[i] += power * gain * mixture[j]
    return refined


def _covariance(stem: Tensor, power: Tensor) -> Matrix:
    """Find a stem's covariance between channels, per unit of power: (bins, 1) each."""
    weight = EPSILON + power.sum(dim=-1, keepdim=True)
    return [
        [(one * other.conj()).sum(dim=-1, keepdim=True) / weight for other in stem] for one in stem
    ]


def _invert(matrix: Matrix) -> Matrix:
    """Invert a matrix of 1 x 1 or 2 x 2 tensors that is Hermitian and positive definite."""
    if len(matrix) == 1:
        return [[1 / matrix[0][0]]]
    (a, b), (c, d) = matrix
    determinant = a.real * d.real - (b.real**2 + b.imag**2)
    return [[d / determinant, -b / determinant], [-c / determinant, a / determinant]]
