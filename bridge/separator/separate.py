"""The way from a clip's blocks to its stems' blocks.

::

    source ─ channel groups ─ to the model's rate ─ normalise ─ segments ─ network
       │                                                                      │
       │     mixture, delayed                                                 │
       └──────────── pairs ─ back at the source's rate ─ restore level ─ overlap-add

The clip is read twice: once for its mean and standard deviation, once to separate it. What is
held at any time is a few segments, whatever the clip's length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.audio.resample import Resampler
from bridge.audio.source import AudioSource
from bridge.separator.channels import ChannelGroups
from bridge.separator.model import StemModel
from bridge.separator.overlap_add import overlap_add
from bridge.separator.plan import plan_segments

# As in the public Demucs package: keeps silence from being divided by nothing.
_LEAST_DEVIATION = 1e-8
# What is handed on at a time: a processor's cache holds it and what is made of it.
_BLOCK_FRAMES = 32_768

Progress = Callable[[int, int], None]
"""Called with segments done and segments in all; what it raises ends the separation."""


@dataclass(frozen=True)
class SeparationOptions:
    """How to separate.

    Parameters
    ----------
    shifts
        Predictions to average, each for the clip moved by a random time of up to 0.5 s.
    overlap
        Share of a segment that the next one hears again, 0 to below 1.
    seed
        Where the shifts come from; the same seed gives the same stems.
    jobs
        Segments worked on at once, on the processor.
    """

    shifts: int = 0
    overlap: float = 0.25
    seed: int = 0
    jobs: int = 1


class SeparatedBlock(NamedTuple):
    """The same stretch of time of the mixture and of its stems.

    ``mixture`` is float32 ``(channels, frames)`` as read, ``stems`` is float32
    ``(stems, channels, frames)`` in the order in which they were asked for.
    """

    mixture: NDArray[np.float32]
    stems: NDArray[np.float32]


def separate(
    source: AudioSource,
    model: StemModel,
    options: SeparationOptions,
    progress: Progress | None = None,
    *,
    stems: Sequence[int] | None = None,
) -> Iterator[SeparatedBlock]:
    """Yield a clip and its stems in consecutive blocks, together exactly ``source.frames``.

    Closing the iterator, or raising in ``progress``, stops within one segment.

    Parameters
    ----------
    source
        The clip, at any rate and channel count.
    model
        Any model; its rate and channels need not be the clip's.
    options
        How to separate.
    progress
        Told of every segment.
    stems
        Wanted stems, as indices into the model's; None for all. Only these are computed, and
        they are what they are among all.
    """
    wanted = tuple(range(len(model.stems)) if stems is None else stems)
    groups = ChannelGroups(source.channels, model.audio_channels)
    level = _measure(_at_model_rate(source.blocks(), source, model, groups))
    if level.silent:
        if progress is not None:
            progress(1, 1)
        for mixture in source.blocks():
            yield SeparatedBlock(mixture, np.zeros((len(wanted), *mixture.shape), np.float32))
        return
    plan = plan_segments(
        max(1, level.frames),
        model.members,
        overlap=options.overlap,
        shifts=options.shifts,
        sample_rate_hz=model.sample_rate_hz,
        seed=options.seed,
        stems=wanted,
    )

    def on_segment(done: int) -> None:
        if progress is not None:
            progress(done, len(plan.segments))

    def separate_segment(member: int, heard: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.members[member].separate_segment(heard, plan.member_stems(member))

    mixtures = _Queue()
    heard = _at_model_rate(mixtures.fill(source.blocks()), source, model, groups)
    many = options.jobs > 1
    with model.workers(options.jobs) if many else nullcontext() as pool:
        separated = overlap_add(
            (level.normalize(block) for block in heard),
            plan,
            separate_segment,
            on_segment=on_segment,
            pool=pool,
            in_flight=options.jobs,
        )
        stems_at_model_rate = (
            groups.from_model(level.restore(block))
            for segment in separated
            for block in _split(segment)
        )
        try:
            for block in _at_source_rate(stems_at_model_rate, source, model, len(wanted)):
                yield SeparatedBlock(mixtures.take(block.shape[-1]), block)
        finally:
            separated.close()  # type: ignore[attr-defined]  # a generator


def _split(block: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, block.shape[-1], _BLOCK_FRAMES):
        yield block[..., start : start + _BLOCK_FRAMES]


def _at_model_rate(
    blocks: Iterator[NDArray[np.float32]],
    source: AudioSource,
    model: StemModel,
    groups: ChannelGroups,
) -> Iterator[NDArray[np.float32]]:
    """Yield ``(groups, model_channels, frames)`` at the model's rate."""
    resampler = Resampler(source.sample_rate_hz, model.sample_rate_hz, source.channels)
    for block in blocks:
        yield groups.to_model(resampler.push(block))
    yield groups.to_model(resampler.finish())


def _at_source_rate(
    blocks: Iterator[NDArray[np.float32]], source: AudioSource, model: StemModel, stem_count: int
) -> Iterator[NDArray[np.float32]]:
    """Yield ``(stems, channels, frames)`` at the source's rate, ``source.frames`` in all.

    Two conversions may round a frame up or down at the very end, nowhere else.
    """
    channels = source.channels
    resampler = Resampler(model.sample_rate_hz, source.sample_rate_hz, stem_count * channels)
    missing_frames = source.frames

    def shaped(flat: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal missing_frames
        stems = flat.reshape(stem_count, channels, flat.shape[-1])[..., :missing_frames]
        missing_frames -= stems.shape[-1]
        return stems

    for block in blocks:
        yield shaped(resampler.push(block.reshape(stem_count * channels, block.shape[-1])))
    yield shaped(resampler.finish())
    yield np.zeros((stem_count, channels, missing_frames), np.float32)


@dataclass(frozen=True)
class _Level:
    """Mean and deviation of each group's mono sum, shaped ``(groups, 1, 1)``."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    frames: int
    silent: bool

    def normalize(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        normalized = block - self.mean
        normalized /= self.deviation + np.float32(_LEAST_DEVIATION)
        return normalized

    def restore(self, stems: NDArray[np.float32]) -> NDArray[np.float32]:
        restored = stems * (self.deviation[:, None] + np.float32(_LEAST_DEVIATION))
        restored += self.mean[:, None]
        return restored


def _measure(blocks: Iterator[NDArray[np.float32]]) -> _Level:
    frames = 0
    silent = True
    mean: NDArray[np.float64] = np.zeros(1)
    squares: NDArray[np.float64] = np.zeros(1)  # sum of squared distances from the mean
    for block in blocks:
        block_frames = block.shape[-1]
        if not block_frames:
            continue
        silent = silent and not block.any()
        mono = block[:, 0].astype(np.float64)  # (groups, frames)
        for channel in range(1, block.shape[1]):
            mono += block[:, channel]
        mono /= block.shape[1]
        block_mean = mono.mean(-1)
        mono -= block_mean[:, None]
        block_squares = np.einsum("gf,gf->g", mono, mono)
        # Chan, Golub and LeVeque: parts' variances add without loss of precision.
        total = frames + block_frames
        apart = block_mean - mean
        squares = squares + block_squares + apart**2 * frames * block_frames / total
        mean = mean + apart * block_frames / total
        frames = total
    deviation = np.sqrt(squares / max(1, frames - 1))
    shape = (-1, 1, 1)
    return _Level(
        mean.astype(np.float32).reshape(shape),
        deviation.astype(np.float32).reshape(shape),
        frames,
        silent,
    )


class _Queue:
    """What was read of the mixture and waits for its stems."""

    def __init__(self) -> None:
        self._blocks: deque[NDArray[np.float32]] = deque()

    def fill(self, blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Pass blocks on and keep them."""
        for block in blocks:
            self._blocks.append(block)
            yield block

    def take(self, frames: int) -> NDArray[np.float32]:
        """Return the next ``frames`` of them; there are that many."""
        parts = []
        while True:
            block = self._blocks.popleft()
            part, rest = block[:, :frames], block[:, frames:]
            frames -= part.shape[1]
            if part.size or not frames:
                parts.append(part)
            if not frames:
                self._blocks.appendleft(rest)
                return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
