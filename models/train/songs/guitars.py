"""Guitars from plucked strings: clean and bass, or driven through distortion and a cabinet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pedalboard import HighpassFilter, LowpassFilter, PeakFilter

from models.train.songs.effects import apply
from models.train.songs.score import SAMPLE_RATE_HZ, Note

_STRING_SECONDS = 4.0


def _string(
    rng: np.random.Generator, pitch_hz: float, damping: float, bright: float, tilt: float
) -> NDArray[np.float32]:
    """Pluck a string (Karplus and Strong 1983).

    It works on whole periods of an integer length; reading it back at the exact rate puts
    the string in tune.
    """
    period = int(SAMPLE_RATE_HZ / pitch_hz)
    periods = int(_STRING_SECONDS * SAMPLE_RATE_HZ / period) + 2
    harmonic = np.arange(period // 2 + 1)
    number = np.maximum(1, harmonic)
    # Picking near the bridge cancels some harmonics; a softer string has fewer high ones.
    picked = np.abs(1 - 0.8 * np.exp(-2j * np.pi * 0.13 * harmonic))
    amplitude = picked * number**-tilt / (1 + (number / (bright * 6)) ** 2)
    amplitude *= np.exp(rng.normal(0, 0.3, len(number)))
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(len(number)))
    spectrum[0] = 0.0  # a constant would never die away and would bias the distortion
    # Each turn averages neighbouring frames, alike on both sides so that the period stays exact;
    # less for high strings, which turn more often. On a spectrum that is a multiplication, so all
    # turns come at once.
    share = 0.5 * min(1.0, 130 / pitch_hz)
    turn = (1 - damping / pitch_hz) * (1 - share + share * np.cos(2 * np.pi * harmonic / period))
    decay = turn[None, :] ** np.arange(periods)[:, None]
    flat = np.fft.irfft(spectrum[None, :] * decay, period, axis=1).reshape(-1)
    ratio = pitch_hz * period / SAMPLE_RATE_HZ
    frames = int(_STRING_SECONDS * SAMPLE_RATE_HZ)
    out = np.interp(np.arange(frames) * ratio, np.arange(len(flat)), flat)
    return np.asarray(out / max(1e-6, float(np.abs(out).max())), dtype=np.float32)


def _take(
    rng: np.random.Generator,
    notes: Sequence[Note],
    frames: int,
    damping: float,
    bright: float,
    tilt: float,
) -> NDArray[np.float32]:
    strings: dict[tuple[int, int], NDArray[np.float32]] = {}
    out = np.zeros(frames, dtype=np.float32)
    fade = round(0.012 * SAMPLE_RATE_HZ)
    for note in notes:
        slot = (note.pitch, int(rng.integers(2)))
        if slot not in strings:
            cents = float(rng.normal(0, 3))
            hertz = 440.0 * 2 ** ((note.pitch - 69) / 12 + cents / 1200)
            strings[slot] = _string(rng, hertz, damping, bright, tilt)
        first = max(0, round((note.start_seconds + float(rng.normal(0, 0.005))) * SAMPLE_RATE_HZ))
        count = min(
            round(note.duration_seconds * SAMPLE_RATE_HZ) + fade, len(strings[slot]), frames - first
        )
        if count <= fade:
            continue
        sound = strings[slot][:count] * np.float32(note.velocity)
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        out[first : first + count] += sound
    return out


def render_driven_guitar(
    rng: np.random.Generator, family: str, notes: Sequence[Note], frames: int
) -> NDArray[np.float32]:
    """Play notes on two takes of a driven guitar, left and right (a lead: one take, centred).

    Returns
    -------
    float32 (2, frames), peak about 1.
    """
    drive = float(rng.uniform(4, 40))
    damping = float(rng.uniform(0.15, 0.6))
    bright = float(rng.uniform(0.8, 2.5))
    cabinet = [
        HighpassFilter(float(rng.uniform(70, 120))),
        PeakFilter(float(rng.uniform(350, 600)), float(rng.uniform(-5, 0)), 0.8),
        PeakFilter(float(rng.uniform(1800, 3200)), float(rng.uniform(1, 6)), 0.9),
        LowpassFilter(float(rng.uniform(4200, 6500))),
        LowpassFilter(float(rng.uniform(5000, 8000))),
    ]  # fmt: skip
    takes = 1 if family == "driven_lead" else 2
    out = np.zeros((2, frames), dtype=np.float32)
    spread = 0.0 if takes == 1 else float(rng.uniform(0.5, 1.0))
    for take in range(takes):
        raw = _take(rng, notes, frames, damping, bright, 0.4)
        raw = apply([HighpassFilter(90.0)], raw)
        driven = np.tanh(drive * raw + 0.15) - np.tanh(np.float32(0.15))
        sound = apply(cabinet, driven.astype(np.float32))
        angle = np.pi / 4 * (1 + (spread if take else -spread))
        out[0] += np.float32(np.cos(angle)) * sound
        out[1] += np.float32(np.sin(angle)) * sound
    return out


def render_plucked(
    rng: np.random.Generator, family: str, notes: Sequence[Note], frames: int
) -> NDArray[np.float32]:
    """Play notes on a clean guitar or a bass guitar (family ``plucked_bass``).

    Returns
    -------
    float32 (2, frames), both channels alike.
    """
    bass = family == "plucked_bass"
    damping = float(rng.uniform(0.1, 0.4) if bass else rng.uniform(0.3, 1.2))
    bright = float(rng.uniform(0.5, 2.5))
    body_hz = float(rng.uniform(90, 140) if bass else rng.uniform(160, 260))
    body = [
        HighpassFilter(30.0 if bass else 75.0),
        PeakFilter(body_hz, float(rng.uniform(1, 6)), 1.0),
        PeakFilter(float(rng.uniform(600, 2500)), float(rng.uniform(-4, 4)), 0.8),
        LowpassFilter(float(rng.uniform(1800, 7000) if bass else rng.uniform(6000, 12000))),
    ]  # fmt: skip
    raw = _take(rng, notes, frames, damping, bright, 1.0 if bass else 0.6)
    sound = apply(body, raw)
    return np.stack([sound, sound])
