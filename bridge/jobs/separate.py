"""Separate a clip into files that are whole, aligned, and sum back to the clip."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bridge import __version__
from bridge.audio.source import ClipAudio
from bridge.audio.wav import BroadcastInfo
from bridge.audio.writer import StemFormat, StemWriter, prepare_folder
from bridge.errors import JobError, JobFailed
from bridge.separator import HasStems, SeparationOptions, StemModel, choose_stems, separate

RESIDUAL = "residual"
ACCOMPANIMENT = "accompaniment"
# JSON knows no minus infinity: what silence and a perfect null are reported as.
SILENCE_DB = -200.0
# Of full scale. Above it the files do not hold what was computed.
LARGEST_NULL_ERROR = 1e-6

Progress = Callable[[str, int, int], None]
"""Called with the phase, steps done and steps in all; what it raises cancels the job."""

NamePath = Callable[[str], Path]
"""The final path of a stem, by the stem's name."""


@dataclass(frozen=True)
class Delivery:
    """What to write, and how.

    Parameters
    ----------
    path_of
        Final path of each stem and of the residual.
    stems
        Stems to deliver; None for all that the model has. ``accompaniment`` is what the other
        stems asked for leave of the mixture, unless the model itself has a stem of that name.
    residual
        Whether to write what the stems leave of the mixture; where the accompaniment is asked
        for there is no more to write.
    stem_format
        Storage of the files.
    time_reference_frames
        Position of the clip's first frame on its timeline, for Broadcast WAV.
    """

    path_of: NamePath
    stems: Sequence[str] | None = None
    residual: bool = True
    stem_format: StemFormat = StemFormat.WAV_FLOAT32
    time_reference_frames: int = 0


@dataclass(frozen=True)
class StemFile:
    """A stem that lies verified on the disk; ``peak_db`` is relative to full scale."""

    name: str
    path: Path
    peak_db: float


@dataclass(frozen=True)
class Separation:
    """The outcome of a separation.

    ``stems`` ends with the accompaniment where it was asked for; there is no residual then.
    ``null_db`` is the largest error of the sum of all files against the clip, in dB relative to
    full scale, read back from the files; -200 stands for none at all. ``real_time_factor`` is the
    time taken over the clip's duration: below 1 is faster than playing it.
    """

    sample_rate_hz: int
    frames: int
    stems: tuple[StemFile, ...]
    residual: StemFile | None
    null_db: float
    seconds: float
    real_time_factor: float
    warnings: tuple[str, ...] = field(default=())

    @property
    def files(self) -> tuple[StemFile, ...]:
        """The stems, then the residual if there is one."""
        return self.stems if self.residual is None else (*self.stems, self.residual)


@dataclass(frozen=True)
class DeliveredNames:
    """Names of the files of a separation.

    ``stems`` are the model's, in its order; ``rest`` is what makes up the difference to the
    clip: the accompaniment, the residual, or None.
    """

    stems: tuple[str, ...]
    rest: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """The stems, then the rest if there is one."""
        return self.stems if self.rest is None else (*self.stems, self.rest)


def delivered_names(
    stems: Sequence[str] | None, model: HasStems, *, residual: bool
) -> DeliveredNames:
    """Hold the stems asked for against a model, or against its card.

    Raises
    ------
    JobError
        The model does not know one of them, or only the accompaniment is asked for.
    """
    rest = RESIDUAL if residual else None
    if stems is not None and ACCOMPANIMENT in stems and ACCOMPANIMENT not in model.stems:
        rest = ACCOMPANIMENT
        stems = [stem for stem in stems if stem != ACCOMPANIMENT]
        if not stems:
            example = f"{model.stems[-1]},{ACCOMPANIMENT}"
            raise JobError(
                "the accompaniment is the clip without the other stems asked for; say which, "
                f"for example --stems {example}"
            )
    return DeliveredNames(choose_stems(stems, model), rest)


def to_db(amplitude: float) -> float:
    """Return dB relative to full scale, at least -200."""
    return max(SILENCE_DB, 20 * math.log10(amplitude)) if amplitude > 0 else SILENCE_DB


def separate_clip(
    source: ClipAudio,
    model: StemModel,
    options: SeparationOptions,
    delivery: Delivery,
    *,
    progress: Progress | None = None,
    on_stem: Callable[[StemFile], None] | None = None,
) -> Separation:
    """Separate a clip into verified files.

    The residual, or the accompaniment, is what the stems, as stored, leave of the clip; so the
    files sum back to it within one rounding of the storage format.

    Parameters
    ----------
    source
        The clip.
    model
        The model.
    options
        How to separate.
    delivery
        What to write, and how.
    progress
        Told of every segment, then of the verification.
    on_stem
        Told of each file as it appears under its final name.

    Raises
    ------
    AudioFileError
        The clip is damaged, or a file cannot be written. Nothing half-written remains.
    JobError
        An unknown stem was asked for; :class:`JobFailed` if the files do not sum to the clip.
    """
    started = time.perf_counter()
    names = delivered_names(delivery.stems, model, residual=delivery.residual)
    paths = {name: delivery.path_of(name) for name in names.all}
    warned = len(model.warnings)
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"two stems are to have the same path: {paths}")
    value_count = source.frames * source.channels * len(paths)
    for folder in {path.parent for path in paths.values()}:
        prepare_folder(folder, value_count * delivery.stem_format.bytes_per_value)
    tell = progress or (lambda phase, done, total: None)

    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                StemWriter(
                    path,
                    sample_rate_hz=source.sample_rate_hz,
                    channels=source.channels,
                    frames=source.frames,
                    stem_format=delivery.stem_format,
                    info=_broadcast_info(name, delivery),
                )
            )
            for name, path in paths.items()
        }
        on_segment: Callable[[int, int], None] = lambda done, total: tell("separating", done, total)  # noqa: E731
        wanted = [model.stems.index(name) for name in names.stems]
        for block in separate(source, model, options, on_segment, stems=wanted):
            rest = block.mixture.astype(np.float64)
            for name, stem in zip(names.stems, block.stems, strict=True):
                rest -= writers[name].write(stem)
            if names.rest is not None:
                writers[names.rest].write(rest.astype(np.float32))
        files = []
        for name, writer in writers.items():
            files.append(StemFile(name, writer.finish(), to_db(writer.peak)))
            if on_stem is not None:
                on_stem(files[-1])
        clipped = {name: writer.clipped_values for name, writer in writers.items()}

    warnings = [*source.warnings, *model.warnings[warned:], *_warnings(source, clipped)]
    null_error = _null_error(source, [file.path for file in files], tell)
    if names.rest and not any(clipped.values()) and null_error > LARGEST_NULL_ERROR:
        raise JobFailed(
            f"{files[0].path.parent}: the stems and the {names.rest} miss the clip by "
            f"{null_error:.2g} of full scale; check the disk and run again"
        )
    seconds = time.perf_counter() - started
    return Separation(
        sample_rate_hz=source.sample_rate_hz,
        frames=source.frames,
        stems=tuple(files[:-1] if names.rest == RESIDUAL else files),
        residual=files[-1] if names.rest == RESIDUAL else None,
        null_db=to_db(null_error),
        seconds=seconds,
        real_time_factor=seconds * source.sample_rate_hz / source.frames,
        warnings=tuple(warnings),
    )


def _broadcast_info(name: str, delivery: Delivery) -> BroadcastInfo:
    layout = "A=PCM,W=24" if delivery.stem_format is StemFormat.WAV_INT24 else "A=FLOAT,W=32"
    return BroadcastInfo(
        time_reference_frames=delivery.time_reference_frames,
        description=f"{name} stem",
        coding_history=f"{layout},T=Stembridge {__version__}",
    )


def _warnings(source: ClipAudio, clipped: dict[str, int]) -> Iterator[str]:
    if source.zeroed_values:
        yield (
            f"{source.label}: {source.zeroed_values} values were no audio (NaN, infinite or far "
            "beyond full scale) and were taken as silence; check the file"
        )
    for name, count in clipped.items():
        if count:
            yield (
                f"{name}: {count} values are beyond full scale and were clipped; "
                "choose --format wav-float32 to keep them"
            )


def _null_error(source: ClipAudio, paths: Sequence[Path], tell: Progress) -> float:
    """Return the largest difference of the clip and the sum of files, as read back."""
    parts = [ClipAudio.from_file(path).blocks() for path in paths]
    error = 0.0
    done_frames = 0
    for block in source.blocks():
        rest: NDArray[np.float64] = block.astype(np.float64)
        for part in parts:
            rest -= next(part)
        error = max(error, float(np.abs(rest).max(initial=0.0)))
        done_frames += block.shape[-1]
        tell("verifying", done_frames, source.frames)
    return error
