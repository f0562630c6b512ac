"""The measures, the textbook methods and the ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.train.baselines import classic_stems, equal_shares, oracle_stems
from models.train.metrics import nsdr_db, si_sdr_db

RATE_HZ = 44100


def noise(seed: int, frames: int = 10_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, frames)).astype(np.float32)


def test_nsdr_of_known_errors() -> None:
    source = noise(1)
    assert nsdr_db(source, np.zeros_like(source)) == pytest.approx(0, abs=1e-6)
    assert nsdr_db(source, 0.9 * source) == pytest.approx(20, abs=1e-4)
    assert nsdr_db(source, -source) == pytest.approx(-20 * math.log10(2), abs=1e-4)
    assert nsdr_db(source, source) > 100
    assert math.isnan(nsdr_db(np.zeros_like(source), source))


def test_nsdr_counts_channels_together() -> None:
    """The challenge sums over channels before it divides: a loud channel weighs more."""
    source, error = np.ones((2, 100), np.float32), np.zeros((2, 100), np.float32)
    source[0] *= 3
    error[1] = 1
    assert nsdr_db(source, source + error) == pytest.approx(10 * math.log10(10), abs=1e-5)


def test_si_sdr_forgives_gain_and_offset_only() -> None:
    source, other = noise(1, 200_000), noise(2, 200_000)
    assert si_sdr_db(source, 0.3 * source + 0.1) > 80
    assert si_sdr_db(source, 5 * (source + 0.1 * other)) == pytest.approx(20, abs=0.1)
    assert math.isnan(si_sdr_db(np.zeros_like(source), source))


def test_metrics_refuse_other_shapes() -> None:
    for measure in (nsdr_db, si_sdr_db):
        with pytest.raises(ValueError, match="channels, frames"):
            measure(noise(1), noise(1)[:, :-1])


def simple_song(seconds: int = 6) -> np.ndarray:
    """Clicks, a low tone, held chords and a gliding voice: (stems, channels, frames)."""
    time = np.arange(seconds * RATE_HZ) / RATE_HZ
    clicks = np.zeros_like(time)
    burst = np.random.default_rng(0).standard_normal(2000) * np.exp(-np.arange(2000) / 300)
    for beat in range(2 * seconds):
        clicks[beat * RATE_HZ // 2 :][:2000] += 0.5 * burst
    bass = 0.3 * np.sin(2 * np.pi * 55 * time)
    chords = sum(0.1 * np.sin(2 * np.pi * hz * time) for hz in (330, 415, 494))
    voice = 0.2 * np.sin(2 * np.pi * 700 * time + 300 * np.sin(2 * np.pi * 0.13 * time))
    song = np.stack([clicks, bass, chords, voice])
    return np.repeat(song[:, None], 2, axis=1).astype(np.float32)


def test_textbook_methods_find_their_stems_in_a_simple_song() -> None:
    """They are a fair bar only if they work where they should."""
    sources = simple_song()
    stems = classic_stems(sources.sum(axis=0))
    assert stems.shape == sources.shape
    np.testing.assert_allclose(stems.sum(axis=0), sources.sum(axis=0), atol=2e-3)
    drums, bass, *_ = (nsdr_db(s, e) for s, e in zip(sources, stems, strict=True))
    assert drums > 3
    assert bass > 15


def test_oracle_masks_are_above_all_else() -> None:
    sources = simple_song()
    mixture = sources.sum(axis=0)
    for source, oracle, plain, share in zip(
        sources,
        oracle_stems(sources),
        classic_stems(mixture),
        equal_shares(mixture),
        strict=True,
    ):
        assert nsdr_db(source, oracle) > nsdr_db(source, plain)
        assert nsdr_db(source, oracle) > nsdr_db(source, share) + 3


def test_equal_shares_sum_to_the_mixture() -> None:
    mixture = noise(3)
    np.testing.assert_array_equal(equal_shares(mixture).sum(axis=0), mixture)
