"""One song: from (split, seed, index) to four stems and their description, in memory or stored."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from models.train.songs import assets
from models.train.songs.arrangement import compose
from models.train.songs.assets import Font, Kit, Split, Voice
from models.train.songs.drums import render_drums
from models.train.songs.fonts import render_strokes
from models.train.songs.guitars import render_driven_guitar, render_plucked
from models.train.songs.mixing import Audio, Desk, balance, draw_levels, loudness_lufs, master
from models.train.songs.score import SAMPLE_RATE_HZ, STEMS, Part, Score
from models.train.songs.singing import draw_singer, sing
from models.train.songs.styles import STYLES, Style
from models.train.songs.synths import render_synth
from models.train.songs.voices import load_bank

_HELD_OUT_STYLE_SHARE = 0.35  # of the songs of the split `unseen`


@dataclass(frozen=True)
class SongRequest:
    """All that decides a song: equal requests give equal audio."""

    split: Split
    seed: int
    index: int
    seconds: float
    shippable: bool = False
    full: bool = False

    @property
    def song_id(self) -> str:
        """Name of the song's folder."""
        return f"{self.split}-{self.seed}-{self.index:04d}"

    def generator(self) -> np.random.Generator:
        """Return the source of all the song's choices."""
        entropy = [assets.SPLITS.index(self.split), self.seed, self.index, int(self.shippable)]
        return np.random.default_rng(entropy)


@dataclass(frozen=True)
class Choice:
    """The style and the assets of a song."""

    style: Style
    bass_font: Font
    other_fonts: tuple[Font, ...]
    kit: Kit
    voice: Voice
    second_voice: Voice

    def programs(self) -> frozenset[int] | None:
        """Return the General MIDI programs that all the song's fonts may play, None for all."""
        fonts = (self.bass_font, *self.other_fonts)
        limits = [font.own_programs for font in fonts if font.own_programs is not None]
        return frozenset.intersection(*limits) if limits else None


@dataclass(frozen=True)
class Song:
    """A finished song: stems float32 (2, frames) within full scale, and its description."""

    stems: dict[str, Audio]
    description: dict[str, Any]

    @property
    def mixture(self) -> Audio:
        """The sum of the stems."""
        return np.asarray(np.sum([self.stems[name] for name in STEMS], axis=0), dtype=np.float32)


def _draw_kit(rng: np.random.Generator, kits: list[Kit], acoustic: bool) -> Kit:
    fitting = [kit for kit in kits if kit.acoustic == acoustic or kit.engine == "gm"] or kits
    return fitting[int(rng.integers(len(fitting)))]


def choose_assets(rng: np.random.Generator, split: Split, shippable: bool) -> Choice:
    """Draw style, fonts, kit and voices that the split may use."""
    known = [style for style in STYLES if style.name not in assets.HELD_OUT_STYLES]
    held = [style for style in STYLES if style.name in assets.HELD_OUT_STYLES]
    styles = held if split == "unseen" and rng.random() < _HELD_OUT_STYLE_SHARE else known
    style = styles[int(rng.integers(len(styles)))]
    fonts = assets.allowed(assets.FONTS, split, shippable)
    kits = assets.allowed(assets.KITS, split, shippable)
    voices = assets.allowed(assets.VOICES, split, shippable)
    other_fonts = tuple(fonts[int(rng.integers(len(fonts)))] for _ in range(6))
    kit = _draw_kit(rng, kits, bool(rng.random() < style.acoustic_kit))
    voice = voices[int(rng.integers(len(voices)))]
    similar = [candidate for candidate in voices if candidate.low == voice.low]
    second = similar[int(rng.integers(len(similar)))] if rng.random() < 0.4 else voice
    return Choice(style, fonts[int(rng.integers(len(fonts)))], other_fonts, kit, voice, second)


def _render_part(rng: np.random.Generator, part: Part, font: Font, frames: int) -> Audio:
    if not part.notes:
        return np.zeros((2, frames), dtype=np.float32)
    if part.engine == "synth":
        return render_synth(rng, part.family, part.notes, frames)
    if part.engine == "plucked":
        return render_plucked(rng, part.family, part.notes, frames)
    if part.engine == "driven_guitar":
        return render_driven_guitar(rng, part.family, part.notes, frames)
    strokes = [(n.start_seconds, n.end_seconds, n.pitch, n.velocity) for n in part.notes]
    return render_strokes(font.path, 0, part.program, strokes, frames)


def _render_vocals(
    rng: np.random.Generator, score: Score, choice: Choice, desk: Desk, frames: int, cache: Path
) -> Audio:
    singer = draw_singer(rng)
    lines: list[tuple[str, Audio]] = []
    for line in score.vocals:
        voice = choice.second_voice if line.kind == "harmony" else choice.voice
        if not line.notes:
            continue
        mono = sing(rng, load_bank(voice, cache), singer, line.notes, frames)
        lines.append((line.kind, np.stack([mono, mono])))
    if not lines:
        return np.zeros((2, frames), dtype=np.float32)
    return desk.vocals(lines, score.tempo_bpm)


def _used_assets(score: Score, choice: Choice) -> dict[str, list[str]]:
    fonts = {
        f.name
        for p, f in zip(score.others, choice.other_fonts, strict=False)
        if p.engine == "font" and p.notes
    }
    if score.bass.engine == "font" and score.bass.notes:
        fonts.add(choice.bass_font.name)
    kinds = {line.kind for line in score.vocals if line.notes}
    voices = {choice.voice.name} if kinds else set()
    if "harmony" in kinds:
        voices.add(choice.second_voice.name)
    kits = [choice.kit.name] if score.hits else []
    return {"fonts": sorted(fonts), "kits": kits, "voices": sorted(voices)}


def render_song(request: SongRequest, cache_folder: Path) -> Song:
    """Render a song.

    Parameters
    ----------
    request
        What to render; the same request gives the same song.
    cache_folder
        Where the voices' analyses are kept (they are made on first use).

    Raises
    ------
    AssetsMissing
        An instrument is not installed.
    """
    rng = request.generator()
    choice = choose_assets(rng, request.split, request.shippable)
    score = compose(
        rng,
        choice.style,
        request.seconds,
        low_voice=choice.voice.low,
        programs=choice.programs(),
        full=request.full,
    )
    frames = round(request.seconds * SAMPLE_RATE_HZ)
    desk = Desk(rng, choice.style.name)
    drums = render_drums(
        rng,
        choice.kit,
        score.hits,
        frames,
        acoustic=choice.kit.acoustic and choice.style.acoustic_kit > 0.5,
    )
    bass = _render_part(rng, score.bass, choice.bass_font, frames)
    other = np.zeros((2, frames), dtype=np.float32)
    for part, font in zip(score.others, choice.other_fonts, strict=False):
        if part.notes:
            other += desk.accompaniment(part.family, _render_part(rng, part, font, frames))
    dry = {
        "drums": desk.drums(drums),
        "bass": desk.bass(bass),
        "other": other,
        "vocals": _render_vocals(rng, score, choice, desk, frames, cache_folder),
    }
    stems = master(rng, balance(dry, draw_levels(rng)))
    edge = min(frames, round(0.01 * SAMPLE_RATE_HZ))
    for sound in stems.values():  # the song may stop in the middle of a note
        sound[:, -edge:] *= np.linspace(1, 0, edge, dtype=np.float32)
    mixture = np.sum(list(stems.values()), axis=0)
    used = _used_assets(score, choice)
    description = {
        "id": request.song_id,
        **asdict(request),
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "frames": frames,
        "style": score.style,
        "key": score.key,
        "tempo_bpm": score.tempo_bpm,
        "sections": list(score.sections),
        "assets": used,
        "attribution": assets.attribution(used),
        "instruments": {
            "bass": score.bass.family,
            "other": [p.family for p in score.others if p.notes],
        },
        "loudness_lufs": {
            "mixture": round(loudness_lufs(mixture), 2),
            **{name: round(loudness_lufs(sound), 2) for name, sound in stems.items()},
        },
        "peak": round(float(np.abs(mixture).max()), 4),
    }
    return Song({name: stems[name] for name in STEMS}, description)


def store_song(song: Song, folder: Path) -> None:
    """Write stems (FLAC, 16 bit) and song.json; the folder appears only when complete."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, sound in song.stems.items():
            soundfile.write(partial / f"{name}.flac", sound.T, SAMPLE_RATE_HZ, subtype="PCM_16")
        text = json.dumps(song.description, indent=2) + "\n"
        (partial / "song.json").write_text(text, encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def render_to(request: SongRequest, folder: Path, cache_folder: Path) -> str:
    """Render a song into a folder and return its id (what a worker process does)."""
    store_song(render_song(request, cache_folder), folder)
    return request.song_id
