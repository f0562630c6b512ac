"""Sound fonts through FluidSynth, one fresh synthesiser a part so that renders repeat exactly."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.train.songs.assets import AssetsMissing
from models.train.songs.score import SAMPLE_RATE_HZ

_GAIN = 0.35
_PERCUSSION_BANK = 128

# FluidSynth's 16-bit output carries dither that differs from process to process; floats do not.
_SYNTH_AND_BUFFERS = (
    ("synth", ctypes.c_void_p, 1), ("len", ctypes.c_int, 1),
    ("lout", ctypes.c_void_p, 1), ("loff", ctypes.c_int, 1), ("lincr", ctypes.c_int, 1),
    ("rout", ctypes.c_void_p, 1), ("roff", ctypes.c_int, 1), ("rincr", ctypes.c_int, 1),
)  # fmt: skip

KeyStroke = tuple[float, float, int, float]  # start and end in seconds, MIDI key, velocity 0..1


def fluidsynth() -> Any:
    """Import pyfluidsynth; AssetsMissing if it or its library is not installed."""
    # pyfluidsynth looks for the shared library on import and fails without it.
    try:
        return importlib.import_module("fluidsynth")
    except ImportError as error:
        raise AssetsMissing(
            f"FluidSynth cannot be loaded ({error}): apt-get install fluidsynth "
            "and pip install --no-deps pyfluidsynth"
        ) from error


def render_strokes(
    font: Path, bank: int, program: int, strokes: Iterable[KeyStroke], frames: int
) -> NDArray[np.float32]:
    """Play keys on a preset of a sound font, without its reverb and chorus.

    Parameters
    ----------
    bank, program
        Preset; where the font lacks it, the bank's first preset is played.

    Returns
    -------
    float32 (2, frames), about [-1, 1].
    """
    settings = {
        "synth.reverb.active": 0,
        "synth.chorus.active": 0,
        "synth.dynamic-sample-loading": 1,
        "synth.polyphony": 160,
    }
    library = fluidsynth()
    write = library.cfunc("fluid_synth_write_float", ctypes.c_int, *_SYNTH_AND_BUFFERS)

    def play(synth: Any, out: NDArray[np.float32], first: int, last: int) -> None:
        if last > first:
            left, right = (out[channel].ctypes.data for channel in (0, 1))
            write(synth.synth, last - first, left, first, 1, right, first, 1)

    synth = library.Synth(gain=_GAIN, samplerate=float(SAMPLE_RATE_HZ), channels=16, **settings)
    try:
        font_id = synth.sfload(str(font))
        if font_id < 0:
            raise AssetsMissing(f"{font}: not a readable sound font; install its package again")
        if synth.sfpreset_name(font_id, bank, program) is None:
            program = 0
        synth.program_select(0, font_id, bank, program)
        events: list[tuple[int, int, int, int]] = []  # frame, 0 off / 1 on, key, velocity
        for start, end, key, velocity in strokes:
            first = round(start * SAMPLE_RATE_HZ)
            last = max(first + 1, round(end * SAMPLE_RATE_HZ))
            events.append((first, 1, key, int(np.clip(round(velocity * 127), 1, 127))))
            events.append((last, 0, key, 0))
        out = np.zeros((2, frames), dtype=np.float32)
        at = 0
        for frame, switch, key, velocity in sorted(events):
            if frame >= frames:
                break
            play(synth, out, at, frame)
            at = max(at, frame)
            if switch:
                synth.noteon(0, key, velocity)
            else:
                synth.noteoff(0, key)
        play(synth, out, at, frames)
    finally:
        synth.delete()
    return out


def render_drum_keys(
    font: Path, program: int, strokes: Iterable[KeyStroke], frames: int, *, general_midi: bool
) -> NDArray[np.float32]:
    """Play drum keys: on the percussion bank of a GM font, or on a kit's own first preset."""
    return render_strokes(font, _PERCUSSION_BANK if general_midi else 0, program, strokes, frames)
