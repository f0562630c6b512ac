"""The written song: plain data that the arrangement fills and the instruments read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SAMPLE_RATE_HZ = 44_100
STEMS = ("drums", "bass", "other", "vocals")
STEPS_PER_BAR = 16
BEATS_PER_BAR = 4


@dataclass(frozen=True)
class Note:
    """One pitched note. `pitch` is a MIDI number, `velocity` lies in (0, 1]."""

    start_seconds: float
    duration_seconds: float
    pitch: int
    velocity: float

    @property
    def end_seconds(self) -> float:
        """Where the note is let go."""
        return self.start_seconds + self.duration_seconds


@dataclass(frozen=True)
class Hit:
    """One drum stroke; `role` names the drum (``kick``, ``snare``, ``hat_closed``, ...)."""

    start_seconds: float
    role: str
    velocity: float


@dataclass(frozen=True)
class SungNote:
    """One sung syllable. `lyric` numbers the word: equal numbers sing the same word."""

    start_seconds: float
    duration_seconds: float
    pitch: int
    velocity: float
    lyric: int
    starts_phrase: bool

    @property
    def end_seconds(self) -> float:
        """Where the syllable ends."""
        return self.start_seconds + self.duration_seconds


Engine = Literal["font", "synth", "driven_guitar", "plucked"]


@dataclass(frozen=True)
class Part:
    """The notes of one instrument.

    `program` is a General MIDI program for the engine ``font``; `family` names the kind of sound
    (``piano``, ``pad``, ...) and guides the mix.
    """

    engine: Engine
    family: str
    program: int
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class VocalLine:
    """One singer's line: the lead, its double or a harmony."""

    kind: Literal["lead", "double", "harmony"]
    notes: tuple[SungNote, ...]


@dataclass(frozen=True)
class Score:
    """A whole song before it sounds."""

    style: str
    key: str
    tempo_bpm: float
    seconds: float
    hits: tuple[Hit, ...]
    bass: Part
    others: tuple[Part, ...]
    vocals: tuple[VocalLine, ...]
    sections: tuple[str, ...] = field(default=())
