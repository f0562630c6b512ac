"""The voice bank: syllables spoken by speech synthesis, analysed once and cached.

Each voice speaks a list of monosyllables. WORLD (Morise and others 2016) splits them into a
spectral envelope and an aperiodicity, from which `singing` makes notes of any pitch and length.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from models.train.songs.assets import AssetsMissing, Voice

ANALYSIS_RATE_HZ = 22_050
FFT_FRAMES = 1024  # bins 21.5 Hz apart, as those of a 2048 transform at 44.1 kHz
FRAME_SECONDS = 0.005
NOISE_BANDS = 24  # aperiodicity is smooth: so many values from 0 to the analysis limit
_BANK_VERSION = 1
_SHORTEST_NUCLEUS_FRAMES = 10

WORDS = {
    "english": (
        "love day night you me fire time way heart mind light home feel go know see rain sky run "
        "fall call all now here stay free dream eyes hand hold road life moon sun blue gold wild "
        "world sea wave soul burn turn one more was like that just can oh la yeah so near low no "
        "down by song"
    ),
    "romance": (
        "la no ma te sol mar tu se con per del va re bel lo cor pan mi da lu na fa do si ti vo "
        "non il sal ven ca lla gra tra so ra li me po che"
    ),
    "open": (
        "la no na ma me do da so lo po te to se si va ve nu lu re ru ki ku mi mo ho he sa su ta "
        "tu le li pa ra ri len man son tal"
    ),
}


@dataclass(frozen=True)
class Syllable:
    """One analysed syllable.

    Attributes
    ----------
    spectrum
        float32 (frames, bins), natural logarithm of the power envelope; the nucleus has mean
        power 1.
    noise
        float32 (frames, `NOISE_BANDS`), aperiodicity in [0, 1].
    voiced
        bool (frames,).
    nucleus
        First frame of the vowel and the frame after its last.
    """

    spectrum: NDArray[np.float32]
    noise: NDArray[np.float32]
    voiced: NDArray[np.bool_]
    nucleus: tuple[int, int]


@dataclass(frozen=True)
class VoiceBank:
    """All syllables of a voice and the frequency up to which they carry sound."""

    voice: Voice
    syllables: tuple[Syllable, ...]
    limit_hz: float


def world() -> Any:
    """Import pyworld, whose import of pkg_resources would warn on every run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("pyworld")
        except ImportError as error:
            raise AssetsMissing(
                f"pyworld cannot be loaded ({error}): pip install pyworld 'setuptools<81'"
            ) from error


def default_cache_folder() -> Path:
    """Return ``$STEMBRIDGE_CACHE``, else ``stembridge`` in the user's cache folder."""
    chosen = os.environ.get("STEMBRIDGE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stembridge"


def _run(command: Sequence[str], voice: Voice) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise AssetsMissing(
            f"voice {voice.name} does not speak ({error}): apt-get install {voice.package}"
        ) from error


def _speak_with_festival(voice: Voice, words: Mapping[Path, str], folder: Path) -> None:
    # The Italian voice crashes Festival after some utterances, so go on where it stopped.
    script = folder / "say.scm"
    left = dict(words)
    while left:
        lines = [f"({voice.parameter})", "(Parameter.set 'Duration_Stretch 1.35)"]
        lines += [
            f'(utt.save.wave (utt.synth (Utterance Text "{word}")) "{path}" \'riff)'
            for path, word in left.items()
        ]
        script.write_text("\n".join(lines) + "\n", encoding="ascii")
        try:
            _run(["festival", "--batch", str(script)], voice)
        except AssetsMissing:
            still_left = {path: word for path, word in left.items() if not path.is_file()}
            if len(still_left) == len(left):  # it is the first word that it cannot say
                still_left.pop(next(iter(still_left)))
            left = still_left
        else:
            return


def _speak(voice: Voice, words: Sequence[str], folder: Path) -> list[Path]:
    """Let a voice say each word into a file of its own."""
    paths = [folder / f"{index:03d}.wav" for index in range(len(words))]
    if voice.engine == "festival":
        _speak_with_festival(voice, dict(zip(paths, words, strict=True)), folder)
        return [path for path in paths if path.is_file()]
    for word, path in zip(words, paths, strict=True):
        if voice.engine == "flite":
            stretch = ["--setf", "duration_stretch=1.35"]
            _run(["flite", "-voice", voice.parameter, *stretch, "-t", word, "-o", str(path)], voice)
        else:
            _run(["espeak-ng", "-v", voice.parameter, "-s", "120", "-w", str(path), word], voice)
    return paths


def _longest_run(mask: NDArray[np.bool_]) -> tuple[int, int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return 0, 0
    first, last = runs[int(np.argmax(runs[:, 1] - runs[:, 0]))]
    return int(first), int(last)


def _analyse(path: Path) -> tuple[Syllable, float] | None:
    """Analyse one spoken word; None when it has no steady vowel."""
    pyworld = world()
    data, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    limit_hz = min(0.46 * rate_hz, 0.46 * ANALYSIS_RATE_HZ)
    speech = np.ascontiguousarray(soxr.resample(data[:, 0], rate_hz, ANALYSIS_RATE_HZ))
    # A trace of noise keeps WORLD's logarithms finite in digital silence.
    speech += 1e-6 * np.random.default_rng(0).standard_normal(len(speech))
    period_ms = 1000 * FRAME_SECONDS
    rough, times = pyworld.dio(speech, ANALYSIS_RATE_HZ, f0_floor=65.0, f0_ceil=420.0,
                               frame_period=period_ms)  # fmt: skip
    f0 = pyworld.stonemask(speech, rough, times, ANALYSIS_RATE_HZ)
    spectrum = pyworld.cheaptrick(speech, f0, times, ANALYSIS_RATE_HZ, fft_size=FFT_FRAMES)
    noise = pyworld.d4c(speech, f0, times, ANALYSIS_RATE_HZ, fft_size=FFT_FRAMES)
    voiced = f0 > 0
    power_db = 10 * np.log10(spectrum.mean(axis=1) + 1e-20)
    loudest_db = float(power_db.max())
    first, last = _longest_run(voiced & (power_db > loudest_db - 9))
    if last - first < _SHORTEST_NUCLEUS_FRAMES:
        return None
    active = np.flatnonzero(power_db > loudest_db - 42)
    begin = max(int(active[0]), first - 36)
    end = min(int(active[-1]) + 1, last + 44)
    bins = int(limit_hz / ANALYSIS_RATE_HZ * FFT_FRAMES)
    level = float(spectrum[first:last].mean())
    edges = np.linspace(0, bins, NOISE_BANDS).astype(int)
    syllable = Syllable(
        np.log(spectrum[begin:end, :bins] / level + 1e-12).astype(np.float32),
        noise[begin:end][:, edges].astype(np.float32),
        voiced[begin:end],
        (first - begin, last - begin),
    )
    return syllable, limit_hz


def _build(voice: Voice) -> VoiceBank:
    words = sorted(set(WORDS[voice.words].split()))
    with tempfile.TemporaryDirectory() as folder:
        found = [_analyse(path) for path in _speak(voice, words, Path(folder))]
    kept = [result for result in found if result is not None]
    if len(kept) < len(words) // 3:
        raise AssetsMissing(
            f"voice {voice.name} speaks only {len(kept)} of {len(words)} words: "
            f"apt-get install --reinstall {voice.package}"
        )
    return VoiceBank(voice, tuple(syllable for syllable, _ in kept), kept[0][1])


def _store(bank: VoiceBank, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = [len(s.voiced) for s in bank.syllables]
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(
            file,
            spectrum=np.concatenate([s.spectrum for s in bank.syllables]).astype(np.float16),
            noise=np.concatenate([s.noise for s in bank.syllables]).astype(np.float16),
            voiced=np.concatenate([s.voiced for s in bank.syllables]),
            counts=np.array(counts),
            nuclei=np.array([s.nucleus for s in bank.syllables]),
            limit_hz=np.array(bank.limit_hz),
        )
    Path(file.name).replace(path)


def _restore(voice: Voice, path: Path) -> VoiceBank:
    with np.load(path, allow_pickle=False) as stored:
        ends = np.cumsum(stored["counts"])
        spectrum, noise = stored["spectrum"].astype(np.float32), stored["noise"].astype(np.float32)
        voiced, nuclei = stored["voiced"], stored["nuclei"]
        syllables = tuple(
            Syllable(
                spectrum[end - count : end], noise[end - count : end], voiced[end - count : end],
                (int(nucleus[0]), int(nucleus[1])),
            )
            for end, count, nucleus in zip(ends, stored["counts"], nuclei, strict=True)
        )  # fmt: skip
        return VoiceBank(voice, syllables, float(stored["limit_hz"]))


@lru_cache(maxsize=6)
def load_bank(voice: Voice, cache_folder: Path) -> VoiceBank:
    """Return a voice's syllables, from the cache or by speaking and analysing them.

    What is returned always went through the cache's 16-bit floats, so that a first render equals
    a later one.

    Raises
    ------
    AssetsMissing
        The speech program or the voice does not work.
    """
    path = cache_folder / "voices" / f"{voice.name}-{_BANK_VERSION}.npz"
    if not path.is_file():
        _store(_build(voice), path)
    return _restore(voice, path)
