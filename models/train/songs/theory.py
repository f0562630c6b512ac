"""Scales, chords and progressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
}
NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")

# Degrees counted from 0, one chord a bar, repeated through the section.
PROGRESSIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "major": (
        (0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 4, 3), (3, 4, 0, 5), (1, 4, 0, 0),
        (0, 2, 3, 4), (0, 3, 0, 4), (3, 0, 4, 5), (0, 0, 3, 4), (0, 4, 3, 3),
    ),
    "minor": (
        (0, 5, 2, 6), (0, 6, 5, 6), (0, 3, 5, 4), (0, 0, 5, 6), (5, 6, 0, 0), (0, 2, 6, 3),
        (0, 3, 0, 6), (0, 5, 3, 6),
    ),
    "dorian": ((0, 3, 0, 3), (0, 0, 3, 3), (0, 6, 3, 0), (0, 2, 3, 0)),
    "mixolydian": ((0, 6, 3, 0), (0, 3, 6, 3), (0, 0, 6, 3), (0, 4, 6, 3)),
    "harmonic minor": ((0, 3, 4, 0), (0, 5, 4, 4), (0, 5, 3, 4)),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A tonic (0 = C) and a mode of `MODES`."""

    tonic: int
    mode: str

    @property
    def name(self) -> str:
        """Such as ``F# minor``."""
        return f"{NOTE_NAMES[self.tonic]} {self.mode}"

    def pitch_classes(self) -> tuple[int, ...]:
        """Return the seven pitch classes of the scale, from the tonic upwards."""
        return tuple((self.tonic + step) % 12 for step in MODES[self.mode])

    def scale(self, lowest: int, highest: int) -> list[int]:
        """Return the scale's MIDI pitches from `lowest` to `highest`, both included."""
        classes = set(self.pitch_classes())
        return [pitch for pitch in range(lowest, highest + 1) if pitch % 12 in classes]


@dataclass(frozen=True)
class Chord:
    """Pitch classes, root first."""

    classes: tuple[int, ...]

    @property
    def root(self) -> int:
        """Pitch class of the root."""
        return self.classes[0]

    @property
    def third(self) -> int:
        """Pitch class of the third."""
        return self.classes[1]

    @property
    def fifth(self) -> int:
        """Pitch class of the fifth."""
        return self.classes[2]

    def voicing(self, centre: int, voices: int) -> list[int]:
        """Return `voices` MIDI pitches in close position around `centre`, lowest first."""
        candidates = [
            pitch for pitch in range(centre - 12, centre + 13) if pitch % 12 in self.classes
        ]
        nearest = sorted(candidates, key=lambda pitch: (abs(pitch - centre), pitch))
        return sorted(nearest[:voices])


def diatonic_chord(key: Key, degree: int, sevenths: bool) -> Chord:
    """Stack thirds of the scale on `degree` (0 is the tonic)."""
    classes = key.pitch_classes()
    tones = 4 if sevenths else 3
    return Chord(tuple(classes[(degree + 2 * index) % 7] for index in range(tones)))


def nearest_pitch(pitch_class: int, target: int) -> int:
    """Return the MIDI pitch of a pitch class that lies nearest to `target`."""
    offset = (pitch_class - target) % 12
    return target + (offset if offset <= 6 else offset - 12)


def progression(rng: np.random.Generator, key: Key, bars: int, sevenths: bool) -> list[Chord]:
    """Draw a progression and lay it out, one chord a bar."""
    patterns: Sequence[tuple[int, ...]] = PROGRESSIONS[key.mode]
    degrees = patterns[int(rng.integers(len(patterns)))]
    return [diatonic_chord(key, degrees[bar % len(degrees)], sevenths) for bar in range(bars)]
