"""Composition of the sung lines: lead, doubles and harmonies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from models.train.songs.score import STEPS_PER_BAR, SungNote, VocalLine
from models.train.songs.styles import Style
from models.train.songs.theory import Chord, Key

LOW_RANGE = (47, 65)
HIGH_RANGE = (56, 75)
LYRICS = 64  # distinct words a song can draw from; the singer maps them to the voice's words

SecondsAt = Callable[[int, float], float]
SectionPlan = tuple[str, int, tuple[Chord, ...]]


def compose_vocals(
    rng: np.random.Generator,
    style: Style,
    seconds_at: SecondsAt,
    key: Key,
    sections: Sequence[SectionPlan],
    seconds: float,
    low_voice: bool,
) -> list[VocalLine]:
    """Write the sung lines of a song.

    Sections of the same name repeat the same melody, with small changes, as choruses do.

    Parameters
    ----------
    seconds_at
        Maps (bar, step) to seconds.
    sections
        (name, first bar, chords) of the sections that are sung.
    low_voice
        Whether the singer has a man's range.
    """
    lowest, highest = LOW_RANGE if low_voice else HIGH_RANGE
    lowest += int(rng.integers(-1, 4))
    rap = bool(rng.random() < style.rap)
    melodies: dict[str, list[_Syllable]] = {}
    lead: list[SungNote] = []
    chorus: list[SungNote] = []
    for name, first_bar, chords in sections:
        if name not in melodies:
            spoken = rap and name != "chorus"
            top = highest if name == "chorus" else highest - 3
            span = (lowest, lowest + 7) if spoken else (lowest + 2, top)
            melodies[name] = _melody(rng, style, key, chords, span, spoken)
        notes = _perform(rng, melodies[name], first_bar, len(chords), seconds_at, seconds)
        lead.extend(notes)
        if name in ("chorus", "bridge"):
            chorus.extend(notes)
    lead.sort(key=lambda note: note.start_seconds)
    lines = [VocalLine("lead", tuple(lead))]
    if chorus and rng.random() < 0.45:
        lines.append(VocalLine("double", tuple(_loosen(rng, chorus))))
    if chorus and rng.random() < 0.4:
        lines.append(VocalLine("harmony", tuple(_harmonise(rng, key, chorus, lowest, highest))))
    return lines


_Syllable = tuple[int, int, int, int, float, int, bool]
# (bar offset, step, steps held, pitch, velocity, lyric, starts phrase)


def _melody(
    rng: np.random.Generator,
    style: Style,
    key: Key,
    chords: Sequence[Chord],
    span: tuple[int, int],
    spoken: bool,
) -> list[_Syllable]:
    scale = key.scale(*span)
    place = int(rng.integers(len(scale) // 4, max(len(scale) // 4 + 1, 3 * len(scale) // 4)))
    pool = style.vocal_rhythms
    motif = [pool[int(rng.integers(len(pool)))] for _ in range(2)]
    syllables: list[_Syllable] = []
    lyric = int(rng.integers(LYRICS))
    for offset, chord in enumerate(chords):
        pattern = motif[offset % 2] if rng.random() < 0.75 else pool[int(rng.integers(len(pool)))]
        phrase_ends = offset % 2 == 1
        starts = [step for step, symbol in enumerate(pattern) if symbol == "x"]
        if phrase_ends and rng.random() < 0.7:
            starts = [step for step in starts if step <= 10] or [0]
        for index, step in enumerate(starts):
            following = starts[index + 1] if index + 1 < len(starts) else STEPS_PER_BAR
            last = phrase_ends and index == len(starts) - 1
            held = following - step
            rest = pattern.find(".", step, following)
            if rest > step:
                held = rest - step
            if last:
                held = min(held, int(rng.choice([4, 6, 8])))
            place = _next_place(
                rng, scale, place, chord, strong=step % 8 == 0 or last, spoken=spoken
            )
            lyric = (lyric + 1 + int(rng.integers(3))) % LYRICS
            velocity = 0.75 + 0.2 * (step % 4 == 0)
            starts_phrase = offset % 2 == 0 and index == 0
            syllables.append((offset, step, held, scale[place], velocity, lyric, starts_phrase))
    return syllables


def _next_place(
    rng: np.random.Generator,
    scale: list[int],
    place: int,
    chord: Chord,
    *,
    strong: bool,
    spoken: bool,
) -> int:
    if spoken:
        return int(np.clip(place + rng.choice([-1, 0, 0, 0, 1]), 0, len(scale) - 1))
    # Steps are commoner than leaps, and the line is drawn back to the middle of its range.
    pull = -0.35 * (place - len(scale) / 2) / max(1.0, len(scale) / 2)
    move = int(rng.choice([-4, -2, -1, -1, 0, 0, 1, 1, 2, 4]) + round(float(rng.normal(pull, 0.5))))
    target = int(np.clip(place + move, 0, len(scale) - 1))
    if strong:
        order = sorted(range(len(scale)), key=lambda i: (abs(i - target), i))
        for candidate in order:
            if scale[candidate] % 12 in chord.classes:
                return candidate
    return target


def _perform(
    rng: np.random.Generator,
    melody: Sequence[_Syllable],
    first_bar: int,
    bars: int,
    seconds_at: SecondsAt,
    seconds: float,
) -> list[SungNote]:
    notes: list[SungNote] = []
    for offset, step, held, pitch, velocity, lyric, starts_phrase in melody:
        if offset >= bars:
            continue
        start = seconds_at(first_bar + offset, step)
        end = seconds_at(first_bar + offset, step + held)
        start += float(rng.normal(0.008, 0.012))
        duration = min((end - start) * float(rng.uniform(0.88, 1.0)), seconds - start)
        if start < 0.05 or duration < 0.08:
            continue
        level = float(np.clip(velocity * rng.normal(1.0, 0.06), 0.4, 1.0))
        notes.append(SungNote(start, duration, pitch, level, lyric, starts_phrase))
    return notes


def _loosen(rng: np.random.Generator, notes: Sequence[SungNote]) -> list[SungNote]:
    return [
        replace(note, start_seconds=max(0.05, note.start_seconds + float(rng.normal(0.012, 0.014))))
        for note in notes
    ]


def _harmonise(
    rng: np.random.Generator, key: Key, notes: Sequence[SungNote], lowest: int, highest: int
) -> list[SungNote]:
    scale = key.scale(lowest - 6, highest + 6)
    steps = int(rng.choice([2, 2, -2, -3]))
    harmony: list[SungNote] = []
    for note in _loosen(rng, notes):
        place = min(range(len(scale)), key=lambda i: abs(scale[i] - note.pitch))
        pitch = scale[int(np.clip(place + steps, 0, len(scale) - 1))]
        harmony.append(replace(note, pitch=pitch, velocity=note.velocity * 0.85))
    return harmony
