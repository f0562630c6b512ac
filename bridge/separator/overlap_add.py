"""Segments out of a stream, stems back into one, in memory that the stream's end cannot grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bridge.separator.plan import Segment, SegmentPlan, Triangles

Separate = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""A member's index and ``(batch, channels, frames)`` to ``(batch, stems, channels, frames)``.

The stems are those that the plan's ``member_stems`` names for the member.
"""


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

    A block's memory is used again: it holds what it holds until the next one is asked for.

    Parameters
    ----------
    blocks
        The stream as blocks ``(batch, channels, frames)``; silence is put behind it if it is
        shorter than planned.
    plan
        Segments of it.
    separate
        The networks.
    on_segment
        Called after each segment with the count of those that are done; what it raises ends
        the separation.
    pool, in_flight
        Where and how many segments are worked on at once; their results are added in order, so
        the outcome does not depend on it.
    """
    window = _Window(blocks)
    sums = _WeightedSums(plan)
    pending: deque[tuple[list[Segment], Future[NDArray[np.float32]]]] = deque()
    todo = deque(plan.segments)
    earliest_reads = _earliest_reads(plan.segments)
    done = 0
    try:
        while todo or pending:
            while todo and len(pending) < max(1, in_flight):
                together = _next_together(todo, plan)
                heard = [window.read(part.read_start_frames, part.read_frames) for part in together]
                window.drop_before(earliest_reads[len(plan.segments) - len(todo)])
                member = plan.grids[together[0].grid].member
                pending.append((together, _submit(pool, separate, member, _joined(heard))))
            together, future = pending.popleft()
            outputs = np.split(future.result(), len(together))
            del future
            following = pending[0][0][0] if pending else todo[0] if todo else None
            for segment, then in zip(together, [*together[1:], following], strict=True):
                sums.add(segment, outputs.pop(0))  # which lets go of it
                done += 1
                on_segment(done)
                ready = sums.take(then.start_frames if then else plan.total_frames)
                if ready is not None:
                    yield ready
    finally:
        for _, future in pending:
            future.cancel()


def _next_together(todo: deque[Segment], plan: SegmentPlan) -> list[Segment]:
    """Take the next segments that one call of a network is for: equally long ones."""
    together = [todo.popleft()]
    first = plan.grids[together[0].grid]
    while todo and len(together) < first.segments_at_once:
        same_member = plan.grids[todo[0].grid].member == first.member
        if not same_member or todo[0].read_frames != together[0].read_frames:
            break
        together.append(todo.popleft())
    return together


def _joined(heard: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return heard[0] if len(heard) == 1 else np.concatenate(heard)


def _submit(
    pool: ThreadPoolExecutor | None, separate: Separate, member: int, heard: NDArray[np.float32]
) -> Future[NDArray[np.float32]]:
    if pool is not None:
        return pool.submit(separate, member, heard)
    future: Future[NDArray[np.float32]] = Future()
    future.set_result(separate(member, heard))
    return future


def _earliest_reads(segments: tuple[Segment, ...]) -> list[int]:
    """For each count of segments already read: the earliest frame that the others will read."""
    earliest = [segments[-1].start_frames + segments[-1].read_frames]
    for segment in reversed(segments):
        earliest.append(min(earliest[-1], segment.read_start_frames))
    return earliest[::-1]


class _Window:
    """The part of a stream that segments still have to hear; silence outside of the stream."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]) -> None:
        self._blocks = blocks
        self._kept = deque([next(blocks)])  # never empty: an empty block tells the shape
        self._start_frames = 0  # of the first block kept
        self._end_frames = self._kept[0].shape[-1]

    def read(self, start_frames: int, frames: int) -> NDArray[np.float32]:
        end_frames = start_frames + frames
        self._fill_up_to(end_frames)
        heard = np.empty((*self._kept[0].shape[:-1], frames), np.float32)
        heard[..., : max(0, -start_frames)] = 0.0
        heard[..., max(0, self._end_frames - start_frames) :] = 0.0
        at = self._start_frames
        for block in self._kept:
            first, last = max(start_frames, at), min(end_frames, at + block.shape[-1])
            if first < last:
                heard[..., first - start_frames : last - start_frames] = block[
                    ..., first - at : last - at
                ]
            at += block.shape[-1]
        return heard

    def drop_before(self, frame: int) -> None:
        while len(self._kept) > 1 and self._start_frames + self._kept[0].shape[-1] <= frame:
            self._start_frames += self._kept.popleft().shape[-1]

    def _fill_up_to(self, end_frames: int) -> None:
        while self._end_frames < end_frames:
            block = next(self._blocks, None)
            if block is None:
                return
            self._kept.append(block)
            self._end_frames += block.shape[-1]


class _WeightedSums:
    """Network outputs, summed under their shares, from ``_start_frames`` on."""

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        self._triangles = Triangles(plan)
        self._start_frames = 0
        self._taken_frames = 0  # at the front of the sums
        self._end_frames = 0  # behind it the sums are 0
        self._sums: NDArray[np.float32] | None = None  # (batch, stems, channels, frames)
        self._product = np.empty(0, np.float32)

    def add(self, segment: Segment, output: NDArray[np.float32]) -> None:
        self._drop_taken()
        # What a shifted grid says of the time before the stream is of no use.
        skip = max(0, self._start_frames - segment.start_frames)
        at = segment.start_frames + skip - self._start_frames
        frames = segment.frames - skip
        trim = segment.start_frames - segment.read_start_frames + skip
        share = self._triangles.share(segment)[skip:]
        sums = self._room_for(output, at + frames)[..., at : at + frames]
        member = self._plan.grids[segment.grid].member
        for index, position in enumerate(self._plan.positions(member)):
            part = np.float32(self._plan.shares[member, position])
            said = output[:, index, :, trim : trim + frames]
            if self._product.shape != said.shape:
                self._product = np.empty(said.shape, np.float32)
            np.multiply(said, share if part == 1 else share * part, out=self._product)
            sums[:, position] += self._product

    def take(self, end_frames: int) -> NDArray[np.float32] | None:
        """Return the sums up to a frame, valid until the next call of :meth:`add`."""
        frames = end_frames - self._start_frames
        if frames <= 0 or self._sums is None:
            return None
        self._drop_taken()
        self._taken_frames = frames
        self._start_frames = end_frames
        return self._sums[..., :frames]

    def _drop_taken(self) -> None:
        if self._sums is None or not self._taken_frames:
            return
        left_frames = self._end_frames - self._taken_frames
        self._sums[..., :left_frames] = self._sums[..., self._taken_frames : self._end_frames]
        self._sums[..., left_frames : self._end_frames] = 0.0
        self._end_frames = left_frames
        self._taken_frames = 0

    def _room_for(self, output: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
        batch, _, channels, _ = output.shape
        held_frames = 0 if self._sums is None else self._sums.shape[-1]
        if self._sums is None or held_frames < frames:
            larger = np.zeros((batch, len(self._plan.stems), channels, frames), np.float32)
            if self._sums is not None:
                larger[..., :held_frames] = self._sums
            self._sums = larger
        self._end_frames = max(self._end_frames, frames)
        return self._sums
