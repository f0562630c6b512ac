"""Synthesisers without samples: wavetables behind a moving filter, and a plain sine bass.

The filter moves by cross-fading between tables of the same wave, each band-limited and filtered at
its own cut-off, which costs a look-up instead of a filter per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.train.songs.score import SAMPLE_RATE_HZ, Note

_TABLE_FRAMES = 2048
_CUTOFFS = 6


@dataclass(frozen=True)
class Patch:
    """A synthesiser's settings; times in seconds, cut-offs in harmonics of the note."""

    wave: str
    pulse_width: float
    voices: int
    detune_cents: float
    attack_seconds: float
    decay_seconds: float
    sustain: float
    release_seconds: float
    cutoff_low: float
    cutoff_high: float
    resonance: float
    filter_decay_seconds: float
    sub: float
    width: float


def draw_patch(rng: np.random.Generator, family: str) -> Patch:
    """Draw a patch: ``sub_bass``, or ``subtractive_`` and bass, pad, pluck or lead."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    wave = str(rng.choice(["saw", "saw", "pulse", "triangle", "organ"]))
    width = between(0.1, 0.5)
    if family == "sub_bass":
        return Patch(
            "sine",
            0.5,
            1,
            0.0,
            0.004,
            between(0.6, 2.5),
            between(0.2, 0.8),
            0.06,
            1.0,
            between(1.0, 4.0),
            0.0,
            between(0.03, 0.1),
            0.0,
            0.0,
        )
    if family == "subtractive_bass":
        wave = str(rng.choice(["saw", "pulse", "saw", "triangle"]))
        return Patch(
            wave,
            width,
            int(rng.choice([1, 1, 2, 3])),
            between(4, 14),
            0.003,
            between(0.15, 0.8),
            between(0.3, 0.9),
            0.04,
            between(1.5, 6),
            between(6, 40),
            between(0, 8),
            between(0.06, 0.4),
            between(0, 0.9),
            between(0, 0.25),
        )
    if family == "subtractive_pad":
        return Patch(
            wave,
            width,
            int(rng.choice([3, 5])),
            between(8, 20),
            between(0.1, 0.7),
            between(0.5, 2),
            between(0.6, 1),
            between(0.3, 1.0),
            between(3, 12),
            between(5, 30),
            between(0, 4),
            between(0.5, 3),
            0.0,
            between(0.6, 1),
        )
    if family == "subtractive_pluck":
        return Patch(
            wave,
            width,
            int(rng.choice([1, 2, 3])),
            between(4, 16),
            0.002,
            between(0.12, 0.6),
            between(0, 0.3),
            between(0.05, 0.4),
            between(1.5, 5),
            between(10, 60),
            between(0, 7),
            between(0.05, 0.3),
            0.0,
            between(0.2, 0.9),
        )
    return Patch(
        wave,
        width,
        int(rng.choice([1, 3, 5, 7])),
        between(6, 22),
        between(0.004, 0.05),
        between(0.2, 1),
        between(0.6, 1),
        between(0.05, 0.3),
        between(4, 14),
        between(15, 70),
        between(0, 5),
        between(0.1, 0.8),
        between(0, 0.3),
        between(0.2, 0.9),
    )


def _harmonics(patch: Patch, count: int) -> NDArray[np.float64]:
    number = np.arange(1, count + 1, dtype=np.float64)
    if patch.wave == "saw":
        amplitude = 1 / number
    elif patch.wave == "pulse":
        amplitude = np.sin(np.pi * number * patch.pulse_width) / number
    elif patch.wave == "triangle":
        amplitude = np.where(number % 2 == 1, (-1.0) ** ((number - 1) // 2) / number**2, 0.0)
    elif patch.wave == "organ":
        amplitude = np.where(np.isin(number, [1, 2, 3, 4, 6, 8]), 0.6 ** np.log2(number), 0.0)
    else:
        amplitude = np.where(number == 1, 1.0, 0.0)
    return np.asarray(amplitude)


def _tables(patch: Patch, pitch_hz: float) -> NDArray[np.float32]:
    """Return wave tables (cut-offs, frames + 1), the last frame repeating the first."""
    count = int(min(_TABLE_FRAMES // 2 - 1, 0.45 * SAMPLE_RATE_HZ / pitch_hz, 400))
    amplitude = _harmonics(patch, max(1, count))
    number = np.arange(1, len(amplitude) + 1, dtype=np.float64)
    tables = np.empty((_CUTOFFS, _TABLE_FRAMES + 1), dtype=np.float32)
    for index, cutoff in enumerate(np.geomspace(patch.cutoff_low, patch.cutoff_high, _CUTOFFS)):
        lowpass = 1 / np.sqrt(1 + (number / cutoff) ** 4)
        peak = (
            1
            + patch.resonance
            * np.exp(-0.5 * ((number - cutoff) / (0.25 * cutoff + 0.5)) ** 2)
            * 0.3
        )
        spectrum = np.zeros(_TABLE_FRAMES // 2 + 1, dtype=np.complex128)
        spectrum[1 : len(amplitude) + 1] = -1j * amplitude * lowpass * peak
        table = np.fft.irfft(spectrum) * (_TABLE_FRAMES / 2)
        tables[index, :-1] = table
        tables[index, -1] = table[0]
    return tables / np.float32(max(1e-6, float(np.abs(tables).max())))


def _envelope(patch: Patch, held: int, frames: int) -> NDArray[np.float32]:
    time = np.arange(frames, dtype=np.float32) / SAMPLE_RATE_HZ
    level = np.minimum(1.0, time / patch.attack_seconds)
    after = np.maximum(0.0, time - patch.attack_seconds)
    level = level * (patch.sustain + (1 - patch.sustain) * np.exp(-after / patch.decay_seconds))
    release = np.maximum(0.0, time - held / SAMPLE_RATE_HZ) / patch.release_seconds
    return np.asarray(level * np.exp(-4.0 * release), dtype=np.float32)


def _render_note(
    rng: np.random.Generator, patch: Patch, note: Note, tables: NDArray[np.float32]
) -> NDArray[np.float32]:
    pitch_hz = 440.0 * 2 ** ((note.pitch - 69) / 12)
    held = max(1, round(note.duration_seconds * SAMPLE_RATE_HZ))
    frames = held + round(1.2 * patch.release_seconds * SAMPLE_RATE_HZ)
    time = np.arange(frames, dtype=np.float32) / SAMPLE_RATE_HZ
    brightness = (
        np.exp(-time / patch.filter_decay_seconds)
        * (_CUTOFFS - 1.001)
        * (0.5 + 0.5 * note.velocity)
    )
    table_index = brightness.astype(np.int32)
    blend = brightness - table_index
    out = np.zeros((2, frames), dtype=np.float32)
    for voice in range(patch.voices):
        spread = 0.0 if patch.voices == 1 else 2 * voice / (patch.voices - 1) - 1
        step = pitch_hz * 2 ** (spread * patch.detune_cents / 1200) * _TABLE_FRAMES / SAMPLE_RATE_HZ
        phase = (rng.uniform(0, _TABLE_FRAMES) if patch.voices > 1 else 0.0) + step * np.arange(
            frames
        )
        phase %= _TABLE_FRAMES
        place = phase.astype(np.int32)
        fraction = (phase - place).astype(np.float32)
        flat = tables.reshape(-1)
        base = table_index * (_TABLE_FRAMES + 1) + place
        dark = flat[base] * (1 - fraction) + flat[base + 1] * fraction
        base += _TABLE_FRAMES + 1
        bright = flat[base] * (1 - fraction) + flat[base + 1] * fraction
        wave = dark + (bright - dark) * blend
        angle = np.pi / 4 * (1 + patch.width * spread)
        out[0] += np.cos(angle) * wave
        out[1] += np.sin(angle) * wave
    out /= np.sqrt(patch.voices)
    if patch.sub:
        out += patch.sub * np.sin(
            np.pi * pitch_hz * (2 if note.pitch < 40 else 1) * time, dtype=np.float32
        )
    if patch.wave == "sine":  # an 808: the pitch falls into the note, and it saturates
        fall = pitch_hz * (time + 0.012 * (1 - np.exp(-time / 0.02)))
        out[:] = np.tanh(patch.cutoff_high * np.sin(2 * np.pi * fall)) / np.tanh(patch.cutoff_high)
    return out * _envelope(patch, held, frames) * np.float32(note.velocity)


def render_synth(
    rng: np.random.Generator, family: str, notes: Sequence[Note], frames: int
) -> NDArray[np.float32]:
    """Play notes on a patch drawn for the family; float32 (2, frames)."""
    patch = draw_patch(rng, family)
    out = np.zeros((2, frames), dtype=np.float32)
    tables: dict[int, NDArray[np.float32]] = {}
    for note in notes:
        if note.pitch not in tables:
            tables[note.pitch] = _tables(patch, 440.0 * 2 ** ((note.pitch - 69) / 12))
        sound = _render_note(rng, patch, note, tables[note.pitch])
        first = round(note.start_seconds * SAMPLE_RATE_HZ)
        count = min(sound.shape[1], frames - first)
        if count > 0:
            out[:, first : first + count] += sound[:, :count]
    return out
