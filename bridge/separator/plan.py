"""Where the networks of a model listen: grids of segments over a stream.

As in ``apply_model`` of the public Demucs package: each member of a model has its own grid, or
with shifts several that start up to half a second early; segments are padded with their real
neighbourhood up to the length that the network needs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.separator.model import SegmentModel

_LARGEST_SHIFT_SECONDS = 0.5


@dataclass(frozen=True)
class Grid:
    """Equally spaced segments of one member over the whole stream."""

    member: int
    start_frames: int
    segment_frames: int
    stride_frames: int
    segments_at_once: int = 1


@dataclass(frozen=True)
class Segment:
    """One call of a network, in frames of the stream.

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
    """All segments of a stream, in the order of their start.

    Parameters
    ----------
    segments
        Each names its grid.
    grids
        Each names its member.
    stems
        Wanted stems, as indices into the model's.
    shares
        What each member contributes to each wanted stem, ``(members, stems)``: its weight over
        the sum of weights and over the number of its grids. A stem's column and a grid's
        triangles sum to 1 together.
    total_frames
        Length of the stream.
    """

    segments: tuple[Segment, ...]
    grids: tuple[Grid, ...]
    stems: tuple[int, ...]
    shares: NDArray[np.float64]
    total_frames: int

    def member_stems(self, member: int) -> tuple[int, ...]:
        """Return the wanted stems that a member has a share in."""
        return tuple(self.stems[position] for position in self.positions(member))

    def positions(self, member: int) -> tuple[int, ...]:
        """Return where the stems of :meth:`member_stems` stand among the wanted ones."""
        return tuple(int(position) for position in np.flatnonzero(self.shares[member]))


def plan_segments(
    total_frames: int,
    members: Sequence[SegmentModel],
    *,
    overlap: float,
    shifts: int,
    sample_rate_hz: int,
    seed: int,
    stems: Sequence[int] | None = None,
) -> SegmentPlan:
    """Lay the grids of segments over a stream.

    Parameters
    ----------
    total_frames
        Length of the stream.
    members
        The model's networks; one that has no weight for any wanted stem gets no segment.
    overlap
        Share of a segment that the next one hears again, 0 to below 1.
    shifts
        Grids to average, each with a random start drawn from ``seed``; 0 for one grid at 0. A
        member's starts do not depend on which stems are wanted.
    sample_rate_hz
        Rate of the stream.
    seed
        Where the shifts come from.
    stems
        Wanted stems, as indices into the model's; None for all.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is a share from 0 to below 1, not {overlap}")
    if shifts < 0:
        raise ValueError(f"shifts is a count, not {shifts}")
    wanted = tuple(range(len(members[0].weights)) if stems is None else stems)
    weights = np.array([[member.weights[stem] for stem in wanted] for member in members])
    totals = weights.sum(0)
    if not wanted or not totals.all():
        raise ValueError("each wanted stem needs a member that has a weight for it")
    largest_shift_frames = int(_LARGEST_SHIFT_SECONDS * sample_rate_hz)
    draw = random.Random(seed)  # noqa: S311
    grids = []
    for index, member in enumerate(members):
        # Drawn for members without a part in this, too: the others' starts stay as they are.
        drawn = [draw.randint(0, largest_shift_frames) for _ in range(shifts)]
        stride_frames = max(1, int((1 - overlap) * member.segment_frames))
        if weights[index].any():
            starts = [frames - largest_shift_frames for frames in drawn] or [0]
            frames, at_once = member.segment_frames, member.segments_at_once
            grids += [Grid(index, start, frames, stride_frames, at_once) for start in starts]
    segments = [
        segment
        for index, grid in enumerate(grids)
        for segment in _lay(index, grid, members[grid.member], total_frames)
    ]
    segments.sort(key=lambda segment: (segment.start_frames, segment.grid))
    shares = weights / totals / max(1, shifts)
    return SegmentPlan(tuple(segments), tuple(grids), wanted, shares, total_frames)


def _lay(index: int, grid: Grid, member: SegmentModel, total_frames: int) -> list[Segment]:
    segments = []
    for start in range(grid.start_frames, total_frames, grid.stride_frames):
        frames = min(grid.segment_frames, total_frames - start)
        if start + frames <= 0:
            continue  # a shifted grid may begin with segments that the stream never reaches
        read_frames = member.valid_frames(frames)
        read_start = start - (read_frames - frames) // 2
        segments.append(Segment(index, start, frames, read_start, read_frames))
    return segments


class Triangles:
    """The share that a segment has in its grid, frame by frame.

    The segments' weights are triangles. Divided here by the sum of the triangles that meet at
    each frame, they sum to 1, so that outputs can be added up with no division afterwards.
    """

    def __init__(self, plan: SegmentPlan) -> None:
        self._plan = plan
        self._kept: dict[tuple[int, int, int], NDArray[np.float32]] = {}

    def share(self, segment: Segment) -> NDArray[np.float32]:
        """Return float32 ``(frames,)``; nearly all segments of a grid have the same."""
        grid = self._plan.grids[segment.grid]
        # All followers that begin within this segment are there, whatever the stream's length.
        before = (segment.start_frames - grid.start_frames) // grid.stride_frames
        before = min(before, (grid.segment_frames - 1) // grid.stride_frames)
        key = (segment.grid, before, segment.frames)
        if key not in self._kept:
            self._kept[key] = _share(grid, before, segment.frames)
        return self._kept[key]


def _share(grid: Grid, before: int, frames: int) -> NDArray[np.float32]:
    half = grid.segment_frames // 2
    rise, fall = np.arange(1.0, half + 1), np.arange(float(grid.segment_frames - half), 0.0, -1.0)
    triangle = np.concatenate([rise, fall])
    total = triangle[:frames].copy()
    for distance in range(grid.stride_frames, before * grid.stride_frames + 1, grid.stride_frames):
        reached = triangle[distance : distance + frames]
        total[: len(reached)] += reached
    for distance in range(grid.stride_frames, frames, grid.stride_frames):
        total[distance:] += triangle[: frames - distance]
    share: NDArray[np.float32] = (triangle[:frames] / total).astype(np.float32)
    return share
