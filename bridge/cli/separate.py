"""``stembridge separate``: an audio file to stem files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.audio.names import safe_file_name
from bridge.audio.source import ClipAudio, inspect_audio
from bridge.audio.timecode import format_time, parse_range
from bridge.audio.writer import StemFormat
from bridge.cli.console import ProgressBar, print_json, print_line, print_table, print_warnings
from bridge.errors import JobError
from bridge.jobs.separate import Delivery, Separation, delivered_names, separate_clip
from bridge.separator import SeparationOptions
from bridge.separator.presets import PRESETS
from models.registry import best_installed, find
from models.speeds import record_speed

LEAST_SECONDS_TO_TIME = 20

if TYPE_CHECKING:
    from bridge.separator.network import TorchModel


def run(options: Namespace) -> None:
    """Run the command."""
    source = _clip(options.clip, options.range)
    stem_format = StemFormat(options.format)
    delivery = Delivery(
        path_of=lambda stem: (
            options.output / safe_file_name(options.clip.stem, f" - {stem}{stem_format.suffix}")
        ),
        stems=stem_names(options.stems),
        residual=options.residual,
        stem_format=stem_format,
        time_reference_frames=source.time_reference_frames,
    )
    model = chosen_model(options)
    with ProgressBar() as bar:
        result = separate_clip(
            source,
            model,
            separation_options(options),
            delivery,
            progress=bar.update,
            on_stem=lambda stem: bar.note(f"{stem.name}: {stem.path}"),
        )
    remember_speed(model, options, result)
    print_warnings(result.warnings)
    if options.json:
        print_json({"input": options.clip, **separation_json(result, model.name)})
        return
    print_table(
        ("stem", "file", "peak"),
        [(file.name, str(file.path), f"{file.peak_db:.1f} dBFS") for file in result.files],
    )
    print_line(summary(result))


def _clip(path: Path, time_range: str | None) -> ClipAudio:
    if time_range is None:
        return ClipAudio.from_file(path)
    info = inspect_audio(path)
    try:
        start_frames, end_frames = parse_range(time_range, info.sample_rate_hz, info.frames)
    except ValueError as error:
        raise JobError(f"{path}: {error}") from error
    return ClipAudio.from_file(path, start_frames=start_frames, frames=end_frames - start_frames)


def stem_names(text: str | None) -> list[str] | None:
    """Return the stems of ``--stems A,B``."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def chosen_model(options: Namespace) -> TorchModel:
    """Load what ``--model`` or ``--quality`` name, for the stems that are wanted."""
    preset = PRESETS[options.quality]
    name = preset.model if options.model is None else options.model
    if name == "auto":
        name = best_installed(bags=options.model is not None or preset.bags)
    stems = stem_names(options.stems)
    if stems is not None:
        stems = list(delivered_names(stems, find(name), residual=options.residual).stems)
    # Only now: a mistake in the request is found before torch is loaded.
    from bridge.separator.network import load_model  # noqa: PLC0415

    return load_model(name, options.device, stems, precision=options.precision)


def separation_options(options: Namespace) -> SeparationOptions:
    """Return what ``--shifts``, ``--overlap`` and ``--jobs`` say, or else ``--quality``."""
    preset = PRESETS[options.quality]
    return SeparationOptions(
        shifts=preset.shifts if options.shifts is None else options.shifts,
        overlap=preset.overlap if options.overlap is None else options.overlap,
        jobs=options.jobs,
    )


def remember_speed(model: TorchModel, options: Namespace, result: Separation) -> None:
    """Note how fast a model was, of runs that compare: all stems, each moment heard once."""
    settings = separation_options(options)
    long_enough = result.frames >= LEAST_SECONDS_TO_TIME * result.sample_rate_hz
    if options.stems is None and settings.shifts <= 1 and settings.overlap == 0.25 and long_enough:
        record_speed(model.name, result.real_time_factor, model.device)


def separation_json(result: Separation, model: str) -> dict[str, Any]:
    """Return the fields of ``--json`` that ``separate`` and ``render`` share."""
    return {
        "sample_rate_hz": result.sample_rate_hz,
        "frames": result.frames,
        "model": model,
        "stems": [
            {"name": file.name, "path": file.path.absolute(), "peak_db": round(file.peak_db, 2)}
            for file in result.stems
        ],
        "residual": {"path": result.residual.path.absolute()} if result.residual else None,
        "null_db": round(result.null_db, 2),
        "real_time_factor": round(result.real_time_factor, 4),
    }


def summary(result: Separation) -> str:
    """Return one line on the outcome."""
    duration = format_time(result.frames, result.sample_rate_hz)
    return (
        f"{duration} in {result.seconds:.1f} s (real-time factor {result.real_time_factor:.2f}); "
        f"the files sum to the clip within {result.null_db:.0f} dBFS"
    )
