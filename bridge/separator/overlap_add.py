"""Segments out of a stream, stems back into one, in memory that the stream's end cannot grow.

Equal to ``apply_model`` of the public Demucs package: triangular weights, segments padded with
their real neighbourhood up to the length that the network needs, shifts averaged over grids that
start up to half a second early.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Separate = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""``(batch, channels, frames)`` to ``(batch, stems, channels, frames)``."""

_LARGEST_SHIFT_SECONDS = 0.5


@dataclass(frozen=True)
class Segment:
    """One call of the network, in frames of the stream.

    ``read_start_frames`` and ``read_frames`` are the audio fed to it; ``start_frames`` and
    ``frames`` the part of its output that counts.
    """

    grid: int
    start_frames: int
    frames: int
    read_start_frames: int
    read_frames: int


@dataclass(frozen=True)
class SegmentPlan:
    """All segments of a stream, in the order of their start."""

    segments: tuple[Segment, ...]
    grids: int
    segment_frames: int
    total_frames: int


def plan_segments(
    total_frames: int,
    *,
    segment_frames: int,
    overlap: float,
    shifts: int,
    sample_rate_hz: int,
    seed: int,
    valid_frames: Callable[[int], int],
) -> SegmentPlan:
    """Lay the grids of segments over a stream.

    Parameters
    ----------
    total_frames
        Length of the stream.
    segment_frames
        What the network hears at a time.
    overlap
        Share of a segment that the next one hears again, 0 to below 1.
    shifts
        Grids to average, each with a random start drawn from ``seed``; 0 for one grid at 0.
    sample_rate_hz
        Rate of the stream.
    valid_frames
        The least input length, at or above the one given, that the network accepts.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is a share from 0 to below 1, not {overlap}")
    if shifts < 0:
        raise ValueError(f"shifts is a count, not {shifts}")
    stride_frames = max(1, int((1 - overlap) * segment_frames))
    largest_shift_frames = int(_LARGEST_SHIFT_SECONDS * sample_rate_hz)
    draw = random.Random(seed)  # noqa: S311
    starts = [draw.randint(0, largest_shift_frames) - largest_shift_frames for _ in range(shifts)]
    segments = []
    for grid, first in enumerate(starts or [0]):
        for start in range(first, total_frames, stride_frames):
            frames = min(segment_frames, total_frames - start)
            read_frames = valid_frames(frames)
            read_start = start - (read_frames - frames) // 2
            segments.append(Segment(grid, start, frames, read_start, read_frames))
    segments.sort(key=lambda segment: (segment.start_frames, segment.grid))
    return SegmentPlan(tuple(segments), max(1, shifts), segment_frames, total_frames)


def overlap_add(
    blocks: Iterator[NDArray[np.float32]],
    plan: SegmentPlan,
    separate: Separate,
    *,
    on_segment: Callable[[int], None],
    pool: ThreadPoolExecutor | None = None,
    in_flight: int = 1,
) -> Iterator[NDArray[np.float32]]:
    """Yield the stems of a stream as consecutive blocks ``(batch, stems, channels, frames)``.

    Parameters
    ----------
    blocks
        The stream as blocks ``(batch, channels, frames)``; silence is put behind it if it is
        shorter than planned.
    plan
        Segments of it.
    separate
        The network.
    on_segment
        Called after each segment with the count of those that are done; what it raises ends
        the separation.
    pool, in_flight
        Where and how many segments are worked on at once; their results are added in order, so
        the outcome does not depend on it.
    """
    window = _Window(blocks, plan.total_frames)
    sums = _WeightedSums(plan)
    pending: deque[tuple[Segment, Future[NDArray[np.float32]]]] = deque()
    todo = deque(plan.segments)
    earliest_reads = _earliest_reads(plan.segments)
    done = 0
    try:
        while todo or pending:
            while todo and len(pending) < max(1, in_flight):
                segment = todo.popleft()
                heard = window.read(segment.read_start_frames, segment.read_frames)
                window.drop_before(earliest_reads[len(plan.segments) - len(todo)])
                pending.append((segment, _submit(pool, separate, heard)))
            segment, future = pending.popleft()
            sums.add(segment, future.result())
            done += 1
            on_segment(done)
            following = pending[0][0] if pending else todo[0] if todo else None
            ready = sums.take(following.start_frames if following else plan.total_frames)
            if ready is not None:
                yield ready
    finally:
        for _, future in pending:
            future.cancel()


def _submit(
    pool: ThreadPoolExecutor | None, separate: Separate, heard: NDArray[np.float32]
) -> Future[NDArray[np.float32]]:
    if pool is not None:
        return pool.submit(separate, heard)
    future: Future[NDArray[np.float32]] = Future()
    future.set_result(separate(heard))
    return future


def _earliest_reads(segments: tuple[Segment, ...]) -> list[int]:
    """For each count of segments already read: the earliest frame that the others will read."""
    earliest = [segments[-1].start_frames + segments[-1].read_frames]
    for segment in reversed(segments):
        earliest.append(min(earliest[-1], segment.read_start_frames))
    return earliest[::-1]


class _Window:
    """The part of a stream that segments still have to hear; silence outside of the stream."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]], total_frames: int) -> None:
        self._blocks = blocks
        self._total_frames = total_frames
        self._kept: NDArray[np.float32] | None = None
        self._start_frames = 0

    def read(self, start_frames: int, frames: int) -> NDArray[np.float32]:
        end_frames = start_frames + frames
        kept = self._fill_up_to(min(end_frames, self._total_frames))
        heard = np.zeros((*kept.shape[:-1], frames), np.float32)
        first, last = max(start_frames, 0), min(end_frames, self._start_frames + kept.shape[-1])
        if first < last:
            heard[..., first - start_frames : last - start_frames] = kept[
                ..., first - self._start_frames : last - self._start_frames
            ]
        return heard

    def drop_before(self, frame: int) -> None:
        if self._kept is None:
            return
        surplus_frames = min(frame - self._start_frames, self._kept.shape[-1])
        if surplus_frames > 0:
            self._kept = self._kept[..., surplus_frames:].copy()
            self._start_frames += surplus_frames

    def _fill_up_to(self, end_frames: int) -> NDArray[np.float32]:
        kept = [] if self._kept is None else [self._kept]
        kept_frames = sum(block.shape[-1] for block in kept)
        while not kept or self._start_frames + kept_frames < end_frames:
            block = next(self._blocks, None)
            if block is None:
                break
            kept.append(block)
            kept_frames += block.shape[-1]
        self._kept = np.concatenate(kept, axis=-1) if len(kept) > 1 else kept[0]
        return self._kept


class _WeightedSums:
    """Network outputs of each grid, summed under their weights, from ``_start_frames`` on."""

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        half = plan.segment_frames // 2
        rise, fall = np.arange(1, half + 1), np.arange(plan.segment_frames - half, 0, -1)
        weight = np.concatenate([rise, fall]).astype(np.float32)
        self._weight = weight / weight.max()
        self._start_frames = 0
        self._stems: NDArray[np.float32] | None = None  # (grids, batch, stems, channels, frames)
        self._weights = np.zeros((plan.grids, 0), np.float32)

    def add(self, segment: Segment, output: NDArray[np.float32]) -> None:
        trim = segment.start_frames - segment.read_start_frames
        output = output[..., trim : trim + segment.frames]
        weight = self._weight[: segment.frames]
        # What a shifted grid says of the time before the stream is of no use.
        skip = max(0, self._start_frames - segment.start_frames)
        output, weight = output[..., skip:], weight[skip:]
        at = segment.start_frames + skip - self._start_frames
        stems = self._grown(output.shape[:-1], at + output.shape[-1])
        stems[segment.grid, ..., at : at + output.shape[-1]] += weight * output
        self._weights[segment.grid, at : at + len(weight)] += weight

    def take(self, end_frames: int) -> NDArray[np.float32] | None:
        frames = end_frames - self._start_frames
        if frames <= 0 or self._stems is None:
            return None
        weights = self._weights[:, None, None, None, :frames]
        ready: NDArray[np.float32] = (self._stems[..., :frames] / weights).mean(0)
        self._stems = self._stems[..., frames:].copy()
        self._weights = self._weights[:, frames:].copy()
        self._start_frames = end_frames
        return ready

    def _grown(self, shape: tuple[int, ...], frames: int) -> NDArray[np.float32]:
        if self._stems is None:
            self._stems = np.zeros((self._plan.grids, *shape, 0), np.float32)
        missing = frames - self._stems.shape[-1]
        if missing > 0:
            more = np.zeros((*self._stems.shape[:-1], missing), np.float32)
            self._stems = np.concatenate([self._stems, more], axis=-1)
            more_weights = np.zeros((self._plan.grids, missing), np.float32)
            self._weights = np.concatenate([self._weights, more_weights], axis=-1)
        return self._stems
