"""Drum kits: Hydrogen samples, sound fonts, and kits synthesised from scratch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from models.train.songs.assets import Kit
from models.train.songs.drum_synthesis import synthesise_drum
from models.train.songs.fonts import KeyStroke, render_drum_keys
from models.train.songs.score import SAMPLE_RATE_HZ, Hit

ROLES = (
    "kick", "snare", "stick", "clap", "hat_closed", "hat_open", "hat_pedal", "tom_low", "tom_mid",
    "tom_high", "crash", "ride", "cowbell", "tambourine", "shaker", "conga_low", "conga_high",
)  # fmt: skip

GM_KEYS = {
    "kick": 36, "snare": 38, "stick": 37, "clap": 39, "hat_closed": 42, "hat_open": 46,
    "hat_pedal": 44, "tom_low": 41, "tom_mid": 45, "tom_high": 48, "crash": 49, "ride": 51,
    "cowbell": 56, "tambourine": 54, "shaker": 70, "conga_low": 64, "conga_high": 63,
}  # fmt: skip
AVL_KEYS = {
    "kick": 36, "snare": 38, "stick": 37, "clap": 39, "hat_closed": 42, "hat_open": 46,
    "hat_pedal": 44, "tom_low": 41, "tom_mid": 45, "tom_high": 47, "crash": 49, "ride": 51,
    "cowbell": 56, "tambourine": 54, "shaker": 42, "conga_low": 45, "conga_high": 47,
}  # fmt: skip
GM_KIT_PROGRAMS = {True: (0, 0, 8, 16, 32, 40), False: (24, 25)}

# Tried in order against the instrument names of a Hydrogen kit, the first match wins.
_ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "kick": (r"kick", r"bass ?drum"),
    "snare": (r"snare(?!.*(roll|rim|dry))",),
    "stick": (r"stick", r"rim", r"clave"),
    "clap": (r"clap",),
    "hat_closed": (r"(hat|hh).*(cl|closed)", r"closed.*(hh|hat)", r"hat low"),
    "hat_open": (r"(hat|hh).*op", r"open.*(hh|hat)", r"ohh"),
    "hat_pedal": (r"(hat|hh).*(pedal|pd)", r"pedal.*(hh|hat)"),
    "tom_low": (r"tom.*(low|floor)", r"(floor|low).*tom"),
    "tom_mid": (r"tom.*(mid|2)", r"middle tom", r"^tom$", r"tom"),
    "tom_high": (r"tom.*(hi|1)", r"high tom", r"^tom$", r"tom"),
    "crash": (r"crash(?!.*ride)", r"cymbal"),
    "ride": (r"ride(?!.*bell)",),
    "cowbell": (r"cowbell", r"agogo", r"bell"),
    "tambourine": (r"tambourine(?!.*pedal)",),
    "shaker": (r"shaker", r"maraca"),
    "conga_low": (r"conga", r"drum 1"),
    "conga_high": (r"conga", r"drum 2"),
}
_FALLBACKS = {
    "stick": "clap", "clap": "snare", "hat_open": "hat_closed", "hat_pedal": "hat_closed",
    "tom_low": "tom_mid", "tom_mid": "tom_high", "tom_high": "conga_high", "ride": "hat_closed",
    "crash": "hat_open", "cowbell": "stick", "tambourine": "hat_closed", "shaker": "hat_closed",
    "conga_low": "tom_mid", "conga_high": "tom_high",
}  # fmt: skip

_LEVELS = {
    "kick": 1.0, "snare": 0.85, "stick": 0.5, "clap": 0.6, "hat_closed": 0.3, "hat_open": 0.32,
    "hat_pedal": 0.25, "tom_low": 0.7, "tom_mid": 0.65, "tom_high": 0.6, "crash": 0.42,
    "ride": 0.3, "cowbell": 0.28, "tambourine": 0.26, "shaker": 0.2, "conga_low": 0.4,
    "conga_high": 0.36,
}  # fmt: skip
_PANS = {
    "hat_closed": 0.35, "hat_open": 0.35, "hat_pedal": 0.35, "tom_low": -0.5, "tom_mid": 0.05,
    "tom_high": 0.4, "crash": -0.45, "ride": -0.4, "cowbell": 0.3, "tambourine": -0.35,
    "shaker": 0.45, "conga_low": -0.3, "conga_high": -0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A recorded stroke (2, frames), used for velocities up to `highest`."""

    highest: float
    sound: NDArray[np.float32]


Sounds = dict[str, tuple[Layer, ...]]


def _read_sound(path: Path) -> NDArray[np.float32]:
    data, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    if rate_hz != SAMPLE_RATE_HZ:
        data = soxr.resample(data, rate_hz, SAMPLE_RATE_HZ)
    stereo = np.repeat(data, 2, axis=1) if data.shape[1] == 1 else data[:, :2]
    stereo = stereo[: 5 * SAMPLE_RATE_HZ]
    loud = np.flatnonzero(
        np.abs(stereo).max(axis=1) > 0.005 * max(1e-6, float(np.abs(stereo).max()))
    )
    first = max(0, int(loud[0]) - 40) if len(loud) else 0  # late samples would drag the groove
    return np.ascontiguousarray(stereo[first:].T, dtype=np.float32)


def _instrument_layers(folder: Path, element: Element) -> list[tuple[float, Path]]:
    layers = [
        (float(layer.findtext("max") or 1.0), folder / (layer.findtext("filename") or ""))
        for layer in element.iter("layer")
    ]
    single = element.findtext("filename")
    if not layers and single:
        layers = [(1.0, folder / single)]
    return sorted((top, path) for top, path in layers if path.is_file())


@lru_cache(maxsize=4)
def load_hydrogen_kit(folder: Path) -> Sounds:
    """Read the strokes of a Hydrogen kit by role; roles that it lacks are left out."""
    text = (folder / "drumkit.xml").read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"<\?xml[^>]*\?>|xmlns(:\w+)?=\"[^\"]*\"|xsi:\w+=\"[^\"]*\"", "", text)
    instruments = [
        ((element.findtext("name") or "").lower(), _instrument_layers(folder, element))
        for element in defusedxml.ElementTree.fromstring(text).iter("instrument")
    ]
    sounds: Sounds = {}
    for role, patterns in _ROLE_NAMES.items():
        for pattern in patterns:
            found = [layers for name, layers in instruments if layers and re.search(pattern, name)]
            if found:
                layers = [Layer(top, _read_sound(path)) for top, path in found[0]]
                peak = max(float(np.abs(layer.sound).max()) for layer in layers)
                scale = np.float32(1 / max(peak, 1e-4))
                sounds[role] = tuple(Layer(layer.highest, layer.sound * scale) for layer in layers)
                break
    return sounds


def _synthesised_kit(rng: np.random.Generator) -> Sounds:
    electronic = bool(rng.random() < 0.6)
    return {role: (Layer(1.0, synthesise_drum(rng, role, electronic)),) for role in ROLES}


def _pick(layers: tuple[Layer, ...], velocity: float) -> Layer:
    return next((layer for layer in layers if velocity <= layer.highest), layers[-1])


def _resolve(sounds: Sounds, role: str) -> str | None:
    seen: set[str] = set()
    while role not in sounds:
        seen.add(role)
        role = _FALLBACKS.get(role, "")
        if not role or role in seen:
            return None
    return role


def _play_sounds(
    rng: np.random.Generator, sounds: Sounds, hits: Sequence[Hit], frames: int
) -> NDArray[np.float32]:
    out = np.zeros((2, frames), dtype=np.float32)
    levels = {
        role: level * float(10 ** (rng.normal(0, 1.5) / 20)) for role, level in _LEVELS.items()
    }
    side = float(rng.choice([-1, 1])) * float(rng.uniform(0.3, 1.0))
    hats = sorted(h.start_seconds for h in hits if h.role in ("hat_closed", "hat_pedal"))
    fade = round(0.03 * SAMPLE_RATE_HZ)
    for hit in hits:
        role = _resolve(sounds, hit.role)
        if role is None:
            continue
        layer = _pick(sounds[role], hit.velocity)
        first = round(hit.start_seconds * SAMPLE_RATE_HZ)
        count = min(layer.sound.shape[1], frames - first)
        if hit.role == "hat_open":  # the closing hi-hat chokes the open one
            closing = next((s for s in hats if s > hit.start_seconds + 0.04), None)
            if closing is not None:
                count = min(count, round((closing - hit.start_seconds) * SAMPLE_RATE_HZ))
        if count <= 1:
            continue
        # Layers carry their own loudness; a single layer needs the whole range from the gain.
        power = 0.8 if len(sounds[role]) > 1 else 1.6
        gain = levels[hit.role] * hit.velocity**power * float(10 ** (rng.normal(0, 0.5) / 20))
        angle = np.pi / 4 * (1 + side * _PANS.get(hit.role, 0.0))
        sound = layer.sound[:, :count] * np.float32(gain * np.sqrt(2))
        if count < layer.sound.shape[1]:
            tail = min(fade, count)
            sound[:, -tail:] *= np.linspace(1, 0, tail, dtype=np.float32)
        out[0, first : first + count] += np.float32(np.cos(angle)) * sound[0]
        out[1, first : first + count] += np.float32(np.sin(angle)) * sound[1]
    return out


def _play_font(
    rng: np.random.Generator,
    font: Path,
    hits: Sequence[Hit],
    frames: int,
    *,
    general_midi: bool,
    acoustic: bool,
) -> NDArray[np.float32]:
    keys = GM_KEYS if general_midi else AVL_KEYS
    programs = GM_KIT_PROGRAMS[acoustic]
    program = int(programs[int(rng.integers(len(programs)))]) if general_midi else 0
    levels = {role: 0.75 + 0.25 * _LEVELS[role] for role in ROLES}
    strokes: list[KeyStroke] = [
        (h.start_seconds, h.start_seconds + 0.5, keys[h.role], h.velocity * levels[h.role])
        for h in hits
    ]
    return render_drum_keys(font, program, strokes, frames, general_midi=general_midi)


def render_drums(
    rng: np.random.Generator, kit: Kit, hits: Sequence[Hit], frames: int, *, acoustic: bool
) -> NDArray[np.float32]:
    """Play the hits on a kit; float32 (2, frames), dry.

    Parameters
    ----------
    acoustic
        Which of a General MIDI font's kits to take.
    """
    if kit.path is None:
        return _play_sounds(rng, _synthesised_kit(rng), hits, frames)
    if kit.engine == "hydrogen":
        return _play_sounds(rng, load_hydrogen_kit(kit.path), hits, frames)
    general_midi = kit.engine == "gm"
    return _play_font(rng, kit.path, hits, frames, general_midi=general_midi, acoustic=acoustic)
