"""What is done to sources before they are summed into a training mixture.

The recipe is Demucs' (remixing across songs, channel swap, sign flip, gain), with stems that drop
out, which teaches silence, and a slow equaliser, which stands for other instruments and rooms.
All of it acts on the sources, so that the mixture stays their exact sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from models.train.data import SAMPLE_RATE_HZ, STEMS, SongLibrary

__all__ = ["Augmentation", "draw_batch"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How often and how far."""

    remix: float = 0.5  # probability that the stems come from different songs
    gain_db: float = 6.0  # each source by up to this, either way
    varispeed: float = 0.5  # probability that music is played at another speed ...
    varispeed_ratio: float = 1.15  # ... by up to this, either way: other voices, kits and strings
    drop: float = 0.1  # probability that a source is silenced
    equalize: float = 0.25  # probability that a source is equalised ...
    equalizer_db: float = 6.0  # ... by up to this per band, either way


def draw_batch(
    library: SongLibrary,
    rng: np.random.Generator,
    batch_size: int,
    frames: int,
    augmentation: Augmentation,
) -> FloatArray:
    """Draw training examples, (batch, stems, channels, frames); the mixture is their sum."""
    batch = np.empty((batch_size, len(STEMS), 2, frames), dtype=np.float32)
    for example in batch:
        if rng.random() < augmentation.remix:
            for index in range(len(STEMS)):
                example[index] = _draw_audible(library, rng, frames, augmentation, index)
        else:
            # One speed for all stems, so that they stay in tune.
            example[:] = _draw(library, rng, frames, augmentation)
        _augment(example, rng, augmentation)
    return batch


def _draw_audible(
    library: SongLibrary,
    rng: np.random.Generator,
    frames: int,
    augmentation: Augmentation,
    index: int,
) -> FloatArray:
    """One source of a random segment; a few tries to find one that is not silent."""
    only = slice(index, index + 1)
    for _ in range(2):
        source = _draw(library, rng, frames, augmentation, only)[0]
        if np.abs(source).max() > 0.01:
            break
    return np.asarray(source)


def _draw(
    library: SongLibrary,
    rng: np.random.Generator,
    frames: int,
    augmentation: Augmentation,
    stems: slice = slice(None),
) -> FloatArray:
    """Draw a segment, (stems, channels, frames), at its own speed or another."""
    speed = 1.0
    if rng.random() < augmentation.varispeed:
        speed = augmentation.varispeed_ratio ** rng.uniform(-1, 1)
    segment = library.draw_segment(rng, max(1, round(frames * speed)))[stems]
    if speed == 1:
        return segment
    kept, channels, _ = segment.shape
    columns = segment.reshape(kept * channels, -1).T
    played = soxr.resample(columns, speed, 1.0, quality="LQ")[:frames].T
    played = np.pad(played, ((0, 0), (0, frames - played.shape[-1])))
    return np.asarray(played.reshape(kept, channels, frames), dtype=np.float32)


def _augment(sources: FloatArray, rng: np.random.Generator, augmentation: Augmentation) -> None:
    """Change one example, (stems, channels, frames), in place."""
    audible = rng.random(len(sources)) >= augmentation.drop
    if not audible.any():
        audible[rng.integers(len(sources))] = True
    for index, keep in enumerate(audible):
        source = sources[index]  # a view: what follows changes it in place
        gain_db = rng.uniform(-augmentation.gain_db, augmentation.gain_db)
        sign = rng.choice((-1.0, 1.0))
        source[:] *= np.float32(keep * sign * 10 ** (gain_db / 20))
        if rng.random() < 0.5:
            source[:] = source[::-1].copy()
        if keep and rng.random() < augmentation.equalize:
            source[:] = _equalize(source, rng.uniform(-1, 1, 3) * augmentation.equalizer_db)


def _equalize(source: FloatArray, band_db: npt.NDArray[np.float64]) -> FloatArray:
    """Three gains at about 150, 1000 and 6000 Hz, joined smoothly over the logarithm of frequency.

    Zero phase, and circular over the segment: the responses are far shorter than a segment.
    """
    frames = source.shape[-1]
    frequencies_hz = np.fft.rfftfreq(frames, 1 / SAMPLE_RATE_HZ)
    octaves = np.log2(np.maximum(frequencies_hz, 20) / 1000)
    centres = np.log2(np.array([150.0, 1000.0, 6000.0]) / 1000)
    weights = np.exp(-0.5 * ((octaves - centres[:, None]) / 1.0) ** 2)  # (bands, bins)
    # Beyond the outer centres the nearest gain holds.
    weights[0] = np.where(octaves < centres[0], 1, weights[0])
    weights[2] = np.where(octaves > centres[2], 1, weights[2])
    gains_db = (band_db[:, None] * weights).sum(axis=0) / weights.sum(axis=0)
    spectrum = np.fft.rfft(source, axis=-1) * 10 ** (gains_db / 20)
    equalized: FloatArray = np.fft.irfft(spectrum, frames, axis=-1).astype(np.float32)
    return equalized
