"""Composition: from a random generator to a `Score`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.train.songs.score import (
    BEATS_PER_BAR,
    STEPS_PER_BAR,
    Engine,
    Hit,
    Note,
    Part,
    Score,
    VocalLine,
)
from models.train.songs.styles import PROGRAMS, STAND_INS, Groove, PartRecipe, Style
from models.train.songs.theory import Chord, Key, nearest_pitch, progression
from models.train.songs.vocal_lines import compose_vocals

# Chance that a stem plays in a section. Sections that lack one teach silence and exposure.
ACTIVITY = {
    "intro": {"drums": 0.6, "bass": 0.6, "other": 0.97, "vocals": 0.08},
    "verse": {"drums": 0.93, "bass": 0.94, "other": 0.95, "vocals": 0.97},
    "chorus": {"drums": 1.0, "bass": 1.0, "other": 1.0, "vocals": 1.0},
    "bridge": {"drums": 0.75, "bass": 0.85, "other": 0.97, "vocals": 0.75},
    "solo": {"drums": 0.97, "bass": 0.97, "other": 1.0, "vocals": 0.1},
    "break": {"drums": 0.4, "bass": 0.4, "other": 0.7, "vocals": 0.7},
}
FORMS = (
    ("intro", "verse", "chorus", "verse", "chorus", "solo"),
    ("verse", "chorus", "solo", "chorus", "verse"),
    ("verse", "verse", "chorus", "bridge", "chorus"),
    ("chorus", "verse", "chorus", "break", "chorus"),
    ("intro", "chorus", "verse", "chorus", "bridge"),
    ("bridge", "chorus", "solo", "verse", "chorus"),
)
ENERGY = {"intro": 0.6, "verse": 0.72, "chorus": 1.0, "bridge": 0.75, "solo": 0.9, "break": 0.5}
BASS_LOWEST, BASS_HIGHEST = 28, 48


@dataclass(frozen=True)
class Clock:
    """Musical time to seconds: tempo, swing of the sixteenths, played in 4/4."""

    tempo_bpm: float
    swing: float

    @property
    def step_seconds(self) -> float:
        """Duration of a sixteenth."""
        return 60.0 / self.tempo_bpm / (STEPS_PER_BAR / BEATS_PER_BAR)

    def seconds(self, bar: int, step: float) -> float:
        """Return when a step of a bar sounds, second sixteenths delayed by the swing."""
        late = self.swing * (int(step) % 2)
        return (bar * STEPS_PER_BAR + step + late) * self.step_seconds


@dataclass(frozen=True)
class Section:
    """A stretch of bars with its chords (one a bar) and the stems that play."""

    name: str
    first_bar: int
    chords: tuple[Chord, ...]
    active: frozenset[str]

    @property
    def bars(self) -> int:
        """How many bars."""
        return len(self.chords)

    @property
    def energy(self) -> float:
        """Loudness and busyness in (0, 1]."""
        return ENERGY[self.name]


def _draw_sections(
    rng: np.random.Generator, key: Key, style: Style, bars: int, full: bool
) -> list[Section]:
    form = FORMS[int(rng.integers(len(FORMS)))]
    sevenths = bool(rng.random() < style.sevenths)
    size = 4 if bars < 24 or rng.random() < 0.6 else 8
    harmony: dict[str, tuple[Chord, ...]] = {}
    sections: list[Section] = []
    first = 0
    start = int(rng.integers(len(form)))
    while first < bars:
        name = form[(start + len(sections)) % len(form)]
        if name not in harmony:
            harmony[name] = tuple(progression(rng, key, size, sevenths))
        count = size if name not in ("intro", "break") else max(2, size // 2)
        chance = ACTIVITY[name]
        active = frozenset(s for s, p in chance.items() if full or rng.random() < p)
        sections.append(Section(name, first, harmony[name][:count], active or frozenset({"other"})))
        first += count
    return sections


def _humanise(rng: np.random.Generator, seconds: float, spread_seconds: float) -> float:
    return max(0.0, seconds + float(rng.normal(0.0, spread_seconds)))


def _write_drums(
    rng: np.random.Generator, style: Style, clock: Clock, sections: list[Section]
) -> list[Hit]:
    grooves = style.grooves
    percussion = style.percussion[int(rng.integers(len(style.percussion)))]
    by_section: dict[str, Groove] = {}
    hits: list[Hit] = []
    strength = {"x": 0.72, "X": 0.95, "g": 0.28}
    for section in sections:
        if "drums" not in section.active:
            continue
        if section.name not in by_section:
            base = dict(grooves[int(rng.integers(len(grooves)))])
            if section.name == "chorus" or rng.random() < 0.5:
                base.update({k: v for k, v in percussion.items() if k not in base})
            by_section[section.name] = base
        groove = by_section[section.name]
        for index in range(section.bars):
            bar = section.first_bar + index
            last = index == section.bars - 1
            fill_from = int(rng.choice([8, 12, 12, 14])) if last and rng.random() < 0.7 else 16
            if index == 0 and rng.random() < 0.75:
                start = _humanise(rng, clock.seconds(bar, 0), style.timing_seconds)
                hits.append(Hit(start, "crash", float(rng.uniform(0.6, 0.95))))
            for role, pattern in groove.items():
                for step, symbol in enumerate(pattern):
                    if symbol == "." or step >= fill_from:
                        continue
                    if rng.random() < 0.03 or (role == "crash" and index == 0 and step == 0):
                        continue
                    played = "hat_open" if role == "hat_closed" and rng.random() < 0.03 else role
                    velocity = strength[symbol] * (0.7 + 0.3 * section.energy)
                    accent = 1.0 if step % 4 == 0 else 0.86
                    velocity *= accent * float(rng.normal(1.0, 0.07))
                    start = _humanise(rng, clock.seconds(bar, step), style.timing_seconds)
                    hits.append(Hit(start, played, float(np.clip(velocity, 0.08, 1.0))))
            hits.extend(_write_fill(rng, style, clock, bar, fill_from))
    return sorted(hits, key=lambda hit: (hit.start_seconds, hit.role))


def _write_fill(
    rng: np.random.Generator, style: Style, clock: Clock, bar: int, first_step: int
) -> list[Hit]:
    hits: list[Hit] = []
    roles = ("snare", "tom_high", "tom_mid", "tom_low")
    grid = int(rng.choice([1, 1, 2]))
    for step in range(first_step, STEPS_PER_BAR, grid):
        if rng.random() < 0.15:
            continue
        progress = (step - first_step) / max(1, STEPS_PER_BAR - first_step)
        role = (
            roles[min(3, int(progress * 4 + rng.uniform(-0.5, 0.5)))]
            if rng.random() < 0.8
            else "snare"
        )
        start = _humanise(rng, clock.seconds(bar, step), style.timing_seconds)
        hits.append(
            Hit(start, role, float(np.clip(0.55 + 0.35 * progress + rng.normal(0, 0.06), 0.2, 1.0)))
        )
        if step % 4 == 0:
            hits.append(Hit(start, "kick", 0.75))
    return hits


def _spans(pattern: str) -> list[tuple[int, str, int]]:
    """Split a pattern into (step, symbol, steps held)."""
    spans: list[tuple[int, str, int]] = []
    for step, symbol in enumerate(pattern):
        if symbol in ".-":
            continue
        held = 1
        while step + held < len(pattern) and pattern[step + held] == "-":
            held += 1
        spans.append((step, symbol, held))
    return spans


def _choose_sound(
    rng: np.random.Generator, families: tuple[str, ...], available: frozenset[int] | None
) -> tuple[Engine, str, int]:
    family = families[int(rng.integers(len(families)))]
    programs = tuple(
        program for program in PROGRAMS.get(family, ()) if available is None or program in available
    )
    if family in PROGRAMS and not programs:
        family = STAND_INS[family]
    if family.startswith("plucked"):
        return "plucked", family, 0
    if family.startswith("driven"):
        return "driven_guitar", family, 0
    if programs:
        return "font", family, programs[int(rng.integers(len(programs)))]
    return "synth", family, 0


def _write_bass(
    rng: np.random.Generator,
    style: Style,
    clock: Clock,
    sections: list[Section],
    available: frozenset[int] | None,
) -> Part:
    engine, family, program = _choose_sound(rng, style.bass_families, available)
    patterns = {
        s.name: style.bass_patterns[int(rng.integers(len(style.bass_patterns)))] for s in sections
    }
    centre = int(rng.integers(33, 39))
    shorten = float(rng.uniform(0.75, 1.0))
    notes: list[Note] = []
    for index, section in enumerate(sections):
        if "bass" not in section.active:
            continue
        following = (
            sections[index + 1].chords[0] if index + 1 < len(sections) else section.chords[0]
        )
        for offset, chord in enumerate(section.chords):
            bar = section.first_bar + offset
            root = nearest_pitch(chord.root, centre)
            after = section.chords[offset + 1] if offset + 1 < section.bars else following
            target = nearest_pitch(after.root, root)
            pitches = {
                "R": root,
                "3": root + (chord.third - chord.root) % 12,
                "5": root
                + (chord.fifth - chord.root) % 12
                - (12 if root > 36 and rng.random() < 0.6 else 0),
                "8": root + 12,
                "a": target + int(rng.choice([-1, 1, -2, 2])),
            }
            for step, symbol, held in _spans(patterns[section.name]):
                if rng.random() < 0.04:
                    continue
                pitch = pitches[symbol]
                while pitch < BASS_LOWEST:
                    pitch += 12
                while pitch > BASS_HIGHEST:
                    pitch -= 12
                start = _humanise(rng, clock.seconds(bar, step), style.timing_seconds)
                velocity = 0.8 * (0.8 + 0.2 * section.energy) * float(rng.normal(1.0, 0.07))
                notes.append(
                    Note(
                        start,
                        held * clock.step_seconds * shorten,
                        pitch,
                        float(np.clip(velocity, 0.3, 1.0)),
                    )
                )
    return Part(engine, family, program, tuple(notes))


class _PartWriter:
    """Writes the notes of one accompanying part through all sections."""

    def __init__(
        self, rng: np.random.Generator, style: Style, clock: Clock, key: Key, recipe: PartRecipe
    ) -> None:
        self.rng, self.style, self.clock, self.key, self.recipe = rng, style, clock, key, recipe
        self.pattern = recipe.patterns[int(rng.integers(len(recipe.patterns)))]
        self.centre = int(rng.integers(57, 70))
        self.voices = int(rng.integers(3, 5))
        self.notes: list[Note] = []

    def write(self, section: Section) -> None:
        """Add the section's notes in the recipe's manner."""
        if self.recipe.manner == "lead":
            self._write_lead(section)
            return
        for offset, chord in enumerate(section.chords):
            bar = section.first_bar + offset
            if self.recipe.manner == "pad":
                self._add_chord(
                    chord.voicing(self.centre, self.voices), bar, 0, STEPS_PER_BAR * 1.02, 0.6, 0.0
                )
                continue
            for step, symbol, held in _spans(self.pattern):
                if self.rng.random() < 0.03:
                    continue
                self._add_step(chord, bar, step, symbol, held, section.energy)

    def _add_step(
        self, chord: Chord, bar: int, step: int, symbol: str, held: int, energy: float
    ) -> None:
        manner = self.recipe.manner
        velocity = 0.75 * (0.75 + 0.25 * energy) * (1.0 if step % 4 == 0 else 0.88)
        length = 0.55 if symbol == "s" else held * 0.95
        if manner == "arp":
            tones = chord.voicing(self.centre, 4)
            self._add_chord(
                [tones[int(symbol) % len(tones)]], bar, step, max(length, 1.6), velocity, 0.0
            )
        elif manner == "power":
            root = nearest_pitch(chord.root, 43)
            self._add_chord([root, root + 7, root + 12], bar, step, length, velocity, 0.004)
        elif symbol == "l":
            self._add_chord([nearest_pitch(chord.root, 46)], bar, step, length, velocity, 0.0)
        elif manner == "strum":
            tones = chord.voicing(self.centre - 4, 5)
            down = step % 4 in (0, 1)
            self._add_chord(tones if down else tones[::-1], bar, step, length, velocity, 0.011)
        else:
            self._add_chord(
                chord.voicing(self.centre, self.voices), bar, step, length, velocity, 0.002
            )

    def _add_chord(
        self,
        pitches: list[int],
        bar: int,
        step: int,
        steps: float,
        velocity: float,
        spread_seconds: float,
    ) -> None:
        start = _humanise(self.rng, self.clock.seconds(bar, step), self.style.timing_seconds)
        for index, pitch in enumerate(pitches):
            level = float(np.clip(velocity * self.rng.normal(1.0, 0.07), 0.15, 1.0))
            self.notes.append(
                Note(start + index * spread_seconds, steps * self.clock.step_seconds, pitch, level)
            )

    def _write_lead(self, section: Section) -> None:
        # Beside a singer the lead only answers at the end of every second bar.
        answering = "vocals" in section.active
        scale = self.key.scale(self.centre, self.centre + 19)
        place = len(scale) // 2
        rhythm = self.style.vocal_rhythms[int(self.rng.integers(len(self.style.vocal_rhythms)))]
        for offset in range(section.bars):
            if answering and offset % 2 == 0:
                continue
            for step, _, held in _spans(rhythm):
                if answering and step < 8:
                    continue
                place = int(np.clip(place + self.rng.integers(-2, 3), 0, len(scale) - 1))
                self._add_chord(
                    [scale[place]], section.first_bar + offset, step, held * 0.95, 0.8, 0.0
                )


def _write_others(
    rng: np.random.Generator,
    style: Style,
    clock: Clock,
    key: Key,
    sections: list[Section],
    available: frozenset[int] | None,
) -> list[Part]:
    count = min(len(style.parts), int(rng.choice([2, 3, 3, 4, 5])))
    chosen = rng.choice(len(style.parts), size=count, replace=False)
    parts: list[Part] = []
    for rank, recipe_index in enumerate(int(i) for i in chosen):
        recipe = style.parts[recipe_index]
        engine, family, program = _choose_sound(rng, recipe.families, available)
        writer = _PartWriter(rng, style, clock, key, recipe)
        presence = 1.0 if rank == 0 else 0.75
        plays: dict[str, bool] = {}
        for section in sections:
            if "other" not in section.active:
                continue
            wanted = plays.setdefault(
                section.name, bool(rng.random() < presence * (0.6 + 0.4 * section.energy))
            )
            if wanted or rank == 0:
                writer.write(section)
        notes = sorted(writer.notes, key=lambda note: (note.start_seconds, note.pitch))
        parts.append(Part(engine, family, program, tuple(notes)))
    return parts


def _within(seconds: float, notes: tuple[Note, ...]) -> tuple[Note, ...]:
    return tuple(note for note in notes if note.start_seconds < seconds - 0.02)


def compose(
    rng: np.random.Generator,
    style: Style,
    seconds: float,
    *,
    low_voice: bool,
    programs: frozenset[int] | None = None,
    full: bool = False,
) -> Score:
    """Write a song.

    Parameters
    ----------
    rng
        Source of all choices.
    style
        One of `styles.STYLES`.
    seconds
        Duration; the music stops there, in the middle of a section perhaps.
    low_voice
        Whether the singer has a man's range.
    programs
        The General MIDI programs at hand, None for all; `STAND_INS` replace what is missing.
    full
        Let every stem play in every section (for demonstrations).
    """
    key = Key(int(rng.integers(12)), style.modes[int(rng.integers(len(style.modes)))])
    clock = Clock(round(float(rng.uniform(*style.tempo_bpm)), 2), float(rng.uniform(*style.swing)))
    bars = int(np.ceil(seconds / clock.seconds(1, 0))) + 1
    sections = _draw_sections(rng, key, style, bars, full)
    hits = tuple(
        h for h in _write_drums(rng, style, clock, sections) if h.start_seconds < seconds - 0.02
    )
    bass = _write_bass(rng, style, clock, sections, programs)
    others = _write_others(rng, style, clock, key, sections, programs)
    plan = [(s.name, s.first_bar, s.chords) for s in sections if "vocals" in s.active]
    vocals: list[VocalLine] = compose_vocals(
        rng, style, clock.seconds, key, plan, seconds, low_voice
    )
    return Score(
        style.name, key.name, clock.tempo_bpm, seconds, hits,
        Part(bass.engine, bass.family, bass.program, _within(seconds, bass.notes)),
        tuple(Part(p.engine, p.family, p.program, _within(seconds, p.notes)) for p in others),
        tuple(vocals), tuple(s.name for s in sections),
    )  # fmt: skip
