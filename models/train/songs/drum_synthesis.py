"""Drum sounds computed from sines and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pedalboard import HighpassFilter, LowpassFilter, Plugin

from models.train.songs.effects import apply
from models.train.songs.score import SAMPLE_RATE_HZ


def _time(seconds: float) -> NDArray[np.float64]:
    return np.arange(round(seconds * SAMPLE_RATE_HZ), dtype=np.float64) / SAMPLE_RATE_HZ


def _filtered(sound: NDArray[np.float64], *plugins: Plugin) -> NDArray[np.float64]:
    return apply(plugins, sound.astype(np.float32)).astype(np.float64)


def _swept_sine(
    time: NDArray[np.float64], start_hz: float, end_hz: float, fall_seconds: float
) -> NDArray[np.float64]:
    cycles = end_hz * time + (start_hz - end_hz) * fall_seconds * (1 - np.exp(-time / fall_seconds))
    return np.asarray(np.sin(2 * np.pi * cycles))


def _kick(rng: np.random.Generator, electronic: bool) -> NDArray[np.float64]:
    decay = rng.uniform(0.18, 0.5) if electronic else rng.uniform(0.1, 0.2)
    time = _time(4 * decay)
    body = _swept_sine(time, rng.uniform(120, 320), rng.uniform(42, 62), rng.uniform(0.015, 0.05))
    click = rng.normal(0, 1, len(time)) * np.exp(-time / rng.uniform(0.002, 0.006))
    drive = rng.uniform(1, 3)
    return np.asarray(
        np.tanh(drive * body * np.exp(-time / decay)) + rng.uniform(0.05, 0.3) * click
    )


def _snare(rng: np.random.Generator, electronic: bool) -> NDArray[np.float64]:
    time = _time(0.6)
    low = rng.uniform(150, 240)
    body = _swept_sine(time, low * 1.4, low, 0.02) + 0.6 * np.sin(2 * np.pi * low * 1.78 * time)
    noise = _filtered(rng.normal(0, 1, len(time)), HighpassFilter(rng.uniform(700, 2500)),
                      LowpassFilter(rng.uniform(8000, 15000)))  # fmt: skip
    decay = rng.uniform(0.06, 0.2)
    level = rng.uniform(0.5, 1.0) if electronic else rng.uniform(0.4, 0.8)
    return np.asarray(body * np.exp(-time / 0.06) + level * noise * np.exp(-time / decay))


def _clap(rng: np.random.Generator) -> NDArray[np.float64]:
    time = _time(0.45)
    envelope = np.exp(-time / rng.uniform(0.05, 0.12)) * 0.6
    for start in (0.0, 0.011, 0.023, 0.034):
        envelope += np.where(time >= start, np.exp(-(time - start).clip(0) / 0.004), 0.0)
    noise = rng.normal(0, 1, len(time))
    return _filtered(noise * envelope, HighpassFilter(rng.uniform(600, 1200)), LowpassFilter(7000))


def _metal(rng: np.random.Generator, decay_seconds: float, lowest_hz: float) -> NDArray[np.float64]:
    time = _time(min(3.0, 6 * decay_seconds))
    ratios = np.array([2.0, 3.0, 4.16, 5.43, 6.79, 8.21, 10.3, 13.1])
    base = rng.uniform(300, 520)
    tone = np.sum(
        [np.sign(np.sin(2 * np.pi * base * r * time + rng.uniform(0, 6))) for r in ratios], axis=0
    )
    mixed = 0.25 * tone + rng.uniform(0.5, 1.2) * rng.normal(0, 1, len(time))
    cut = HighpassFilter(lowest_hz)
    return _filtered(mixed * np.exp(-time / decay_seconds), cut, HighpassFilter(lowest_hz * 0.8))


def _membrane(rng: np.random.Generator, hertz: float, decay_seconds: float) -> NDArray[np.float64]:
    time = _time(5 * decay_seconds)
    tone = _swept_sine(time, hertz * 1.5, hertz, 0.04) + 0.4 * np.sin(
        2 * np.pi * hertz * 1.59 * time
    )
    noise = _filtered(rng.normal(0, 1, len(time)) * np.exp(-time / 0.012), LowpassFilter(5000))
    return np.asarray(tone * np.exp(-time / decay_seconds) + 0.25 * noise)


def synthesise_drum(rng: np.random.Generator, role: str, electronic: bool) -> NDArray[np.float32]:
    """Compute one stroke of a role of `drums.ROLES`.

    Returns
    -------
    float32 (2, frames), peak 1; KeyError for an unknown role.
    """
    membranes = {
        "tom_low": 85,
        "tom_mid": 125,
        "tom_high": 170,
        "conga_low": 180,
        "conga_high": 280,
    }
    metals = {"hat_closed": (0.03, 7000), "hat_pedal": (0.02, 6000), "hat_open": (0.25, 6500),
              "crash": (0.7, 3500), "ride": (0.5, 5000), "tambourine": (0.06, 6500)}  # fmt: skip
    if role == "kick":
        sound = _kick(rng, electronic)
    elif role == "snare":
        sound = _snare(rng, electronic)
    elif role == "clap":
        sound = _clap(rng)
    elif role in membranes:
        sound = _membrane(rng, membranes[role] * rng.uniform(0.85, 1.2), rng.uniform(0.1, 0.3))
    elif role in metals:
        decay, lowest = metals[role]
        sound = _metal(rng, decay * rng.uniform(0.7, 1.5), lowest * rng.uniform(0.8, 1.2))
    else:
        time = _time(0.15)
        if role == "shaker":
            noise = rng.normal(0, 1, len(time)) * np.sin(np.pi * np.minimum(1, time / 0.09)) ** 2
            sound = _filtered(noise, HighpassFilter(5500))
        else:
            hertz = {"stick": 1700.0, "cowbell": 560.0}[role] * rng.uniform(0.9, 1.1)
            tone = np.sin(2 * np.pi * hertz * time) + 0.7 * np.sin(2 * np.pi * hertz * 1.48 * time)
            sound = tone * np.exp(-time / (0.012 if role == "stick" else 0.06))
    fade = min(len(sound), 200)
    sound[-fade:] *= np.linspace(1, 0, fade)
    mono = (sound / max(1e-6, float(np.abs(sound).max()))).astype(np.float32)
    return np.stack([mono, mono])
