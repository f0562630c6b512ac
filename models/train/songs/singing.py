"""Singing: a voice bank and a melody become a sung line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pedalboard import HighpassFilter, LowpassFilter
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from models.train.songs.effects import apply
from models.train.songs.score import SAMPLE_RATE_HZ, SungNote
from models.train.songs.voices import (
    FRAME_SECONDS,
    NOISE_BANDS,
    Syllable,
    VoiceBank,
    world,
)

_FFT_FRAMES = 2048
_BINS = _FFT_FRAMES // 2 + 1
_LONGEST_ONSET_FRAMES = 26
_LONGEST_CODA_FRAMES = 30
_PHRASE_GAP_SECONDS = 0.35
_PAD_FRAMES = 40
_SILENCE_LOG = -23.0


@dataclass(frozen=True)
class Singer:
    """How a singer sings, drawn once a song and nearly kept by the doubles."""

    formant_scale: float  # above 1 raises the formants: a smaller head
    breathiness: float
    vibrato_hz: float
    vibrato_cents: float
    vibrato_delay_seconds: float
    glide_frames: float
    scoop_semitones: float
    drift_cents: float
    brightness_db: float
    breaths: bool


def draw_singer(rng: np.random.Generator) -> Singer:
    """Draw a singer's habits."""
    return Singer(
        formant_scale=float(rng.uniform(0.92, 1.13)),
        breathiness=float(rng.choice([0.0, rng.uniform(0.0, 0.25)])),
        vibrato_hz=float(rng.uniform(4.8, 6.3)),
        vibrato_cents=float(rng.choice([rng.uniform(5, 20), rng.uniform(20, 55)])),
        vibrato_delay_seconds=float(rng.uniform(0.12, 0.35)),
        glide_frames=float(rng.uniform(2.5, 7.0)),
        scoop_semitones=float(rng.choice([0.0, rng.uniform(0.3, 2.0)])),
        drift_cents=float(rng.uniform(4, 14)),
        brightness_db=float(rng.uniform(-2, 5)),
        breaths=bool(rng.random() < 0.7),
    )


def _phrases(notes: Sequence[SungNote]) -> list[list[SungNote]]:
    phrases: list[list[SungNote]] = []
    for note in notes:
        if phrases and note.start_seconds - phrases[-1][-1].end_seconds < _PHRASE_GAP_SECONDS:
            phrases[-1].append(note)
        else:
            phrases.append([note])
    return phrases


def _stretched(rng: np.random.Generator, syllable: Syllable, frames: int) -> NDArray[np.float64]:
    """Return which frame of the syllable sounds at each frame of the note, vowel and coda."""
    first, last = syllable.nucleus
    coda = min(len(syllable.voiced) - last, _LONGEST_CODA_FRAMES, frames // 3)
    vowel = max(4, frames - coda)
    length = last - first
    edge = min(length // 3, vowel // 3)
    middle = vowel - 2 * edge
    low, high = first + edge, max(first + edge + 1, last - edge - 1)
    if middle <= high - low:  # a short note: the vowel at its own pace, cut in the middle
        steady = np.linspace(low, high, max(1, middle))
    else:  # to and fro through the vowel, slower than spoken
        pace = rng.uniform(0.15, 0.4)
        turns = np.abs((np.arange(middle) * pace / (high - low) + 1) % 2 - 1)
        steady = high - (high - low) * turns
    path = [
        np.arange(first, first + edge, dtype=np.float64),
        steady,
        np.arange(last - edge, last, dtype=np.float64),
        np.arange(last, last + coda, dtype=np.float64),
    ]
    return np.clip(np.concatenate(path), 0, len(syllable.voiced) - 1)


def _rows(values: NDArray[np.float32], path: NDArray[np.float64]) -> NDArray[np.float32]:
    below = path.astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    blend = (path - below)[:, None].astype(np.float32)
    return np.asarray(values[below] * (1 - blend) + values[above] * blend)


@dataclass
class _Track:
    """A phrase's parameters at 5 ms a frame, before synthesis."""

    spectrum: NDArray[np.float32]
    noise: NDArray[np.float32]
    voiced: NDArray[np.bool_]
    semitones: NDArray[np.float64]


def _lay_out(
    rng: np.random.Generator,
    bank: VoiceBank,
    singer: Singer,
    notes: Sequence[SungNote],
    origin: float,
) -> _Track:
    frames = int((notes[-1].end_seconds - origin) / FRAME_SECONDS) + 2 * _PAD_FRAMES
    bins = bank.syllables[0].spectrum.shape[1]
    spectrum = np.full((frames, bins), _SILENCE_LOG, dtype=np.float32)
    noise = np.ones((frames, NOISE_BANDS), dtype=np.float32)
    voiced = np.zeros(frames, dtype=bool)
    pitch = np.full(frames, np.nan)
    vibrato = np.zeros(frames)
    busy_until = 0
    for index, note in enumerate(notes):
        syllable = bank.syllables[note.lyric % len(bank.syllables)]
        start = round((note.start_seconds - origin) / FRAME_SECONDS)
        length = max(10, round(note.duration_seconds / FRAME_SECONDS))
        path = _stretched(rng, syllable, length)[: frames - start]
        # The consonant comes before the beat, and may end the previous note early.
        onset = min(
            syllable.nucleus[0], _LONGEST_ONSET_FRAMES, max(0, start - max(0, busy_until - 14))
        )
        before = np.arange(syllable.nucleus[0] - onset, syllable.nucleus[0], dtype=np.float64)
        path = np.concatenate([before, path])
        span = slice(start - onset, start - onset + len(path))
        gain_db = 14 * (note.velocity - 1) + float(rng.normal(0, 0.8))
        spectrum[span] = _rows(syllable.spectrum, path) + np.float32(gain_db * np.log(10) / 10)
        noise[span] = _rows(syllable.noise, path)
        voiced[span] = syllable.voiced[np.round(path).astype(np.int64)]
        pitch[start - onset : span.stop] = note.pitch
        if index == 0 and singer.scoop_semitones:
            ramp = np.arange(min(length, 40))
            pitch[start : start + len(ramp)] -= singer.scoop_semitones * np.exp(-ramp / 10.0)
        delay = round(singer.vibrato_delay_seconds / FRAME_SECONDS)
        if length > delay + 20:
            grow = np.clip(np.arange(length - delay) / 40.0, 0, 1)
            stop = min(start + length, frames)
            vibrato[start + delay : stop] = grow[: stop - start - delay]
        busy_until = span.stop
    spectrum = uniform_filter1d(spectrum, 3, axis=0)
    return _Track(spectrum, noise, voiced, _intonation(rng, singer, pitch, vibrato))


def _intonation(
    rng: np.random.Generator,
    singer: Singer,
    pitch: NDArray[np.float64],
    vibrato: NDArray[np.float64],
) -> NDArray[np.float64]:
    known = np.flatnonzero(~np.isnan(pitch))
    held = known[np.clip(np.searchsorted(known, np.arange(len(pitch)), side="right") - 1, 0, None)]
    curve = gaussian_filter1d(pitch[held], singer.glide_frames)
    drift = gaussian_filter1d(rng.standard_normal(len(pitch)), 25.0)
    drift *= singer.drift_cents / 100 / max(1e-9, float(drift.std()))
    wander = 1 + 0.06 * gaussian_filter1d(rng.standard_normal(len(pitch)), 60.0) * 10
    phase = 2 * np.pi * np.cumsum(singer.vibrato_hz * wander) * FRAME_SECONDS
    depth = gaussian_filter1d(vibrato, 4.0) * singer.vibrato_cents / 100
    return np.asarray(curve + drift + depth * np.sin(phase + rng.uniform(0, 6.28)))


def _full_band(
    track: _Track, bank: VoiceBank, singer: Singer
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Warp the formants and continue spectrum and aperiodicity up to 22 kHz."""
    bins = track.spectrum.shape[1]
    position = np.arange(_BINS) / singer.formant_scale
    inside = position < bins - 1
    below = np.minimum(position.astype(np.int64), bins - 2)
    blend = (position - below).astype(np.float32)[inside]
    out = np.empty((len(track.spectrum), _BINS), dtype=np.float64)
    low = below[inside]
    out[:, inside] = track.spectrum[:, low] * (1 - blend) + track.spectrum[:, low + 1] * blend
    # Above the voice's own band: the level of its top, falling, slower for hissing consonants.
    top = track.spectrum[:, bins - 70 :].mean(axis=1)
    octaves = np.log2(position[~inside] / (bins - 1))
    slope_db = np.where(track.voiced, 15.0, 7.0)[:, None]
    out[:, ~inside] = top[:, None] - slope_db * np.log(10) / 10 * octaves[None, :]
    tilt = np.log2(np.maximum(1.0, position * 21.53 / 1500)).clip(0, 2) / 2
    out += singer.brightness_db * np.log(10) / 10 * tilt
    band = np.clip(position / (bins - 1) * (NOISE_BANDS - 1), 0, NOISE_BANDS - 1)
    noise = np.empty_like(out)
    lower = np.minimum(band.astype(np.int64), NOISE_BANDS - 2)
    part = band - lower
    noise[:] = track.noise[:, lower] * (1 - part) + track.noise[:, lower + 1] * part
    noise[:, ~inside] = np.maximum(noise[:, ~inside], 0.75)
    noise += (1 - noise) * singer.breathiness * np.clip(position / bins, 0, 1)
    return np.exp(out), np.clip(noise, 1e-4, 1.0 - 1e-6)


def _breath(rng: np.random.Generator) -> NDArray[np.float32]:
    seconds = float(rng.uniform(0.18, 0.4))
    count = round(seconds * SAMPLE_RATE_HZ)
    shape = np.sin(np.pi * np.linspace(0, 1, count) ** 1.6) ** 2
    sound = rng.standard_normal(count) * shape
    lowest_hz, highest_hz = float(rng.uniform(700, 1500)), float(rng.uniform(4500, 8000))
    effects = [HighpassFilter(lowest_hz), LowpassFilter(highest_hz)]
    return apply(effects, sound.astype(np.float32))


def sing(
    rng: np.random.Generator,
    bank: VoiceBank,
    singer: Singer,
    notes: Sequence[SungNote],
    frames: int,
) -> NDArray[np.float32]:
    """Sing a line.

    Returns
    -------
    float32 (frames,), mono and dry, rms of a sustained note about 0.1.
    """
    pyworld = world()
    out = np.zeros(frames, dtype=np.float32)
    for phrase in _phrases(notes):
        origin = phrase[0].start_seconds - _PAD_FRAMES * FRAME_SECONDS
        track = _lay_out(rng, bank, singer, phrase, origin)
        spectrum, noise = _full_band(track, bank, singer)
        f0 = np.where(track.voiced, 440.0 * 2 ** ((track.semitones - 69) / 12), 0.0)
        # WORLD draws its noise from one fixed sequence, so that the result repeats.
        sound = pyworld.synthesize(f0, spectrum, noise, SAMPLE_RATE_HZ, 1000 * FRAME_SECONDS)
        first = round(origin * SAMPLE_RATE_HZ)
        skip = max(0, -first)
        count = min(len(sound) - skip, frames - first - skip)
        if count <= 0:
            continue
        out[first + skip : first + skip + count] += sound[skip : skip + count].astype(np.float32)
        if singer.breaths and first > 0 and rng.random() < 0.8:
            breath = _breath(rng)
            at = round((phrase[0].start_seconds - 0.12) * SAMPLE_RATE_HZ) - len(breath)
            if at >= 0 and at + len(breath) <= frames:
                level = 0.03 * float(np.abs(sound).max()) * float(rng.uniform(0.4, 1.5))
                peak = max(1e-6, float(np.abs(breath).max()))
                out[at : at + len(breath)] += breath * np.float32(level * 2 / peak)
    return out
