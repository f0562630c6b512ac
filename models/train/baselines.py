"""What can be had without learning: the bar that a trained model has to clear, and the ceiling.

All functions take a mixture (channels, frames) at 44.1 kHz and return stems in the order of
``STEMS``, (stems, channels, frames), float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from models.train.data import SAMPLE_RATE_HZ, STEMS

__all__ = ["classic_stems", "equal_shares", "oracle_stems"]

FloatArray = npt.NDArray[np.float32]
ComplexArray = npt.NDArray[np.complex64]

WINDOW_FRAMES = 4096
HOP_FRAMES = 1024


def equal_shares(mixture: FloatArray) -> FloatArray:
    """Give a quarter of the mixture for every stem."""
    return np.repeat(mixture[None] / len(STEMS), len(STEMS), axis=0)


def classic_stems(mixture: FloatArray) -> FloatArray:
    """Separate by textbook methods.

    Drums: median filtering along frequency against along time (Fitzgerald 2010, "Harmonic /
    percussive separation using median filtering"). Vocals: what does not repeat, found by
    comparing each column with its most similar others (Rafii & Pardo 2012, "Music/voice
    separation using the similarity matrix"), above 150 Hz. Bass: what is left below 150 Hz.
    Other: the rest.
    """
    spectrum = _stft(mixture)  # (channels, bins, columns)
    magnitude = np.abs(spectrum).mean(axis=0)  # (bins, columns)
    frequencies_hz = np.fft.rfftfreq(WINDOW_FRAMES, 1 / SAMPLE_RATE_HZ)[:, None]

    sustained = ndimage.median_filter(magnitude, (1, 17))
    struck = ndimage.median_filter(magnitude, (17, 1))
    drums = struck**2 / (struck**2 + sustained**2 + 1e-10)

    repeating = np.minimum(_repeating_part(magnitude), magnitude)
    fresh = magnitude - repeating
    vocals = (1 - drums) * fresh**2 / (fresh**2 + repeating**2 + 1e-10)
    vocals *= frequencies_hz > 150
    bass = (1 - drums) * (frequencies_hz < 150)
    other = 1 - drums - vocals - bass
    masks = np.stack([drums, bass, other, vocals])[:, None]  # (stems, 1, bins, columns)
    return _istft(masks * spectrum, mixture.shape[-1])


def oracle_stems(sources: FloatArray) -> FloatArray:
    """Separate as well as a mask on magnitudes could: by shares of the true magnitudes.

    Parameters
    ----------
    sources : ndarray
        The true sources, (stems, channels, frames).
    """
    spectra = np.stack([_stft(source) for source in sources])
    magnitudes = np.abs(spectra)
    masks = magnitudes / (magnitudes.sum(axis=0) + 1e-10)
    return _istft(masks * spectra.sum(axis=0), sources.shape[-1])


def _repeating_part(magnitude: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """For each column the median of the columns most like it, at least a second away."""
    columns = magnitude.shape[1]
    unit = magnitude / (np.linalg.norm(magnitude, axis=0) + 1e-10)
    similarity = unit.T @ unit  # (columns, columns)
    apart = SAMPLE_RATE_HZ // HOP_FRAMES
    distance = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    similarity[distance < apart] = -1
    nearest = np.argsort(similarity, axis=1)[:, -20:]
    return np.stack([np.median(magnitude[:, picks], axis=1) for picks in nearest], axis=1)


def _stft(audio: FloatArray) -> ComplexArray:
    _, _, spectrum = signal.stft(
        audio, nperseg=WINDOW_FRAMES, noverlap=WINDOW_FRAMES - HOP_FRAMES, axis=-1
    )
    return np.asarray(spectrum, dtype=np.complex64)


def _istft(spectrum: npt.NDArray[np.complexfloating], frames: int) -> FloatArray:
    _, audio = signal.istft(spectrum, nperseg=WINDOW_FRAMES, noverlap=WINDOW_FRAMES - HOP_FRAMES)
    return np.asarray(audio[..., :frames], dtype=np.float32)
