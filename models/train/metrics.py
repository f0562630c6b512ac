"""How good a stem is, in decibels.

Two measures, never to be mixed in one table: the nSDR of the Music Demixing challenge
(Mitsufuji et al. 2021, https://arxiv.org/abs/2108.13559), which is the headline here, and the
scale-invariant SDR (Le Roux et al. 2018, https://arxiv.org/abs/1811.02508), which forgives gain.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["nsdr_db", "si_sdr_db"]

FloatArray = npt.NDArray[np.floating]

# Below this energy a source counts as silent: no ratio to it means anything.
SILENT_ENERGY = 1e-7


def nsdr_db(source: FloatArray, stem: FloatArray) -> float:
    """Signal-to-distortion ratio over all channels and frames together.

    Parameters
    ----------
    source, stem : ndarray
        The truth and its estimate, (channels, frames), full scale 1.0.

    Returns
    -------
    float
        ``10 log10(sum(source²) / sum((source - stem)²))`` in dB; NaN where the source is silent.
        Both sums carry the challenge's 1e-7, so a perfect stem has a large, finite value.
    """
    _check_shapes(source, stem)
    energy = _energy(source)
    if energy < SILENT_ENERGY:
        return math.nan
    error = _energy(source.astype(np.float64) - stem)
    return 10 * math.log10((energy + SILENT_ENERGY) / (error + SILENT_ENERGY))


def si_sdr_db(source: FloatArray, stem: FloatArray) -> float:
    """Scale-invariant SDR in dB, the mean over channels; NaN where the source is silent.

    Each channel has its mean removed; the source is scaled to fit the stem best.
    """
    _check_shapes(source, stem)
    values = []
    centred_source = source - source.mean(axis=1, keepdims=True, dtype=np.float64)
    centred_stem = stem - stem.mean(axis=1, keepdims=True, dtype=np.float64)
    for truth, estimate in zip(centred_source, centred_stem, strict=True):
        if (energy := _energy(truth)) < SILENT_ENERGY:
            continue
        target = truth * (float(np.dot(truth, estimate)) / energy)
        fitted, error = _energy(target), _energy(estimate - target)
        values.append(10 * math.log10((fitted + 1e-12) / (error + 1e-12)))
    return float(np.mean(values)) if values else math.nan


def _energy(signal: FloatArray) -> float:
    return float(np.sum(np.square(signal, dtype=np.float64)))


def _check_shapes(source: FloatArray, stem: FloatArray) -> None:
    if source.ndim != 2 or source.shape != stem.shape:
        raise ValueError(f"source {source.shape} and stem {stem.shape} must be (channels, frames)")
