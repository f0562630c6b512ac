"""The main job, end to end: separate the example session's clip and render its stems.

``make demo`` runs this. It leaves ``demo-output/session`` (open it in Ardour), the stems in it, and
``demo-output/stems.png``; the example session itself stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyloudnorm
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bridge.audio.source import ClipAudio
from bridge.cli.console import ProgressBar, print_line, print_table
from bridge.jobs.render import Render, RenderRequest, plan_render, render
from bridge.separator import SeparationOptions
from bridge.separator.network import load_model
from models.registry import DEFAULT_MODEL

EXAMPLES = Path(__file__).parent
SESSION = EXAMPLES / "session"
TRUE_STEMS = EXAMPLES / "true_stems"
OUTPUT = Path("demo-output")
TRACK = "Mix"

Audio = NDArray[np.float32]


def main() -> None:
    """Run the demo."""
    model = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    plan = plan_render(RenderRequest(SESSION, track=TRACK, output=OUTPUT / "session"))
    print_line(f"Separating the clip on track '{TRACK}' of {plan.session.path} with {model}")
    with ProgressBar() as bar:
        result = render(plan, load_model(model), SeparationOptions(), progress=bar.update)

    clip = plan.parts[0].clip
    source = ClipAudio(clip.sources, start_frames=clip.start_frames, frames=clip.length_frames)
    mixture = np.concatenate(list(source.blocks()), axis=-1)
    (separation,) = result.separations
    stems = {file.name: read(file.path) for file in separation.files}
    truth = {name: read(TRUE_STEMS / f"{name}.flac") for name in stems if name != "residual"}

    rows = []
    for file in separation.files:
        true_stem = truth.get(file.name)
        rows.append(
            (
                file.name,
                file.path.name,
                f"{file.peak_db:.1f} dBFS",
                f"{loudness_lufs(stems[file.name], separation.sample_rate_hz):.1f} LUFS",
                "" if true_stem is None else f"{sdr_db(true_stem, stems[file.name]):.1f} dB",
                "" if true_stem is None else f"{sdr_db(true_stem, mixture):.1f} dB",
            )
        )
    print_table(("stem", "file", "peak", "loudness", "nSDR", "nSDR of the mixture"), rows)
    print_line(
        f"Stems and residual sum to the clip within {separation.null_db:.0f} dBFS. "
        f"{separation.frames} frames at {separation.sample_rate_hz} Hz took "
        f"{separation.seconds:.1f} s: real-time factor {separation.real_time_factor:.2f}."
    )
    picture = OUTPUT / "stems.png"
    draw({"mixture": mixture, **stems}, separation.sample_rate_hz, picture)
    print_line(f"Session: {result.session.path} (open it in {result.session.daw})")
    print_line(f"Picture: {picture.absolute()}")
    null_of_exports(plan.session.path, result)


def read(path: Path) -> Audio:
    """Return a file as ``(channels, frames)``."""
    audio: Audio = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return audio


def sdr_db(true_stem: Audio, estimate: Audio) -> float:
    """Return the new SDR of the Music Demixing Challenge: energy of the truth over the error's."""
    error = true_stem.astype(np.float64) - estimate
    return float(10 * np.log10((true_stem.astype(np.float64) ** 2).sum() / (error**2).sum()))


def loudness_lufs(audio: Audio, sample_rate_hz: int) -> float:
    """Return the integrated loudness after ITU-R BS.1770."""
    return float(pyloudnorm.Meter(sample_rate_hz).integrated_loudness(audio.T))


def draw(parts: dict[str, Audio], sample_rate_hz: int, path: Path) -> None:
    """Draw a waveform and a spectrogram of each part."""
    colors = {
        "vocals": "#e4606d",
        "drums": "#f0a33e",
        "bass": "#4f8fe6",
        "other": "#5fb878",
    }
    figure = Figure(figsize=(12, 1.5 * len(parts)), layout="constrained")
    axes = figure.subplots(len(parts), 2, sharex=True)
    seconds = next(iter(parts.values())).shape[1] / sample_rate_hz
    peak = max(float(np.abs(audio).max()) for audio in parts.values())
    for (wave_axis, spectrum_axis), (name, audio) in zip(axes, parts.items(), strict=True):
        mono = audio.mean(0)
        columns = np.array_split(mono, 1500)
        time = np.linspace(0, seconds, len(columns))
        wave_axis.fill_between(
            time,
            [column.min() for column in columns],
            [column.max() for column in columns],
            color=colors.get(name, "#8d939c"),
            linewidth=0,
        )
        wave_axis.set(ylabel=name, ylim=(-peak, peak), xlim=(0, seconds), yticks=[])
        spectrum_axis.specgram(
            mono + 1e-9, NFFT=4096, noverlap=3072, Fs=sample_rate_hz, vmin=-140, vmax=-40
        )
        spectrum_axis.set(ylim=(20, 16_000), yticks=[100, 1000, 10_000])
        spectrum_axis.set_yscale("log")
    axes[-1][0].set_xlabel("seconds")
    axes[-1][1].set_xlabel("seconds")
    figure.savefig(path, dpi=90)


def null_of_exports(original: Path, result: Render) -> None:
    """Where Ardour is installed: export the session before and after, and compare."""
    export = next(filter(None, map(shutil.which, ("ardour8-export", "ardour7-export"))), None)
    if export is None:
        print_line("Ardour is not installed: its export is not compared (stembridge doctor)")
        return
    # A session that a program opens may be touched by it; the example itself is not.
    untouched = OUTPUT / "original"
    shutil.copytree(original.parent, untouched)
    exports = []
    for name, folder in (("original", untouched), ("stems", result.session.path.parent)):
        path = OUTPUT / f"export-{name}.wav"
        subprocess.run(
            [export, "-b", "float", "-o", str(path), str(folder), original.stem],
            env=os.environ | {"ARDOUR_FPU_FLAGS": "31"},
            check=True,
            timeout=180,
            capture_output=True,
        )
        exports.append(read(path))
    shutil.rmtree(untouched)
    error = float(np.abs(exports[0] - exports[1]).max())
    print_line(
        f"Ardour's export of the new session differs from the original's by at most {error:.1e} "
        "of full scale"
    )


if __name__ == "__main__":
    main()
