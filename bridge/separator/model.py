"""What the separator asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bridge.errors import JobError


class SegmentModel(Protocol):
    """One network of a model.

    Parameters
    ----------
    segment_frames
        What it hears at a time.
    segments_at_once
        How many segments of equal length it is best given as one batch.
    weights
        How much its word counts for each stem of the model; what no member gives a weight above
        or below 0 cannot be delivered.
    """

    @property
    def segment_frames(self) -> int: ...  # noqa: D102

    @property
    def segments_at_once(self) -> int: ...  # noqa: D102

    @property
    def weights(self) -> tuple[float, ...]: ...  # noqa: D102

    def valid_frames(self, frames: int) -> int:
        """Return the least input length of at least ``frames`` that the network takes."""
        ...

    def separate_segment(
        self, mixture: NDArray[np.float32], stems: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return ``(batch, len(stems), channels, frames)`` of ``(batch, channels, frames)``."""
        ...


class StemModel(Protocol):
    """One or more networks that are asked for the same stems.

    Parameters
    ----------
    members
        The networks, in an order that the random shifts depend on.
    warnings
        What a user should know of the runs so far; it grows while segments are worked on.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def stems(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def sample_rate_hz(self) -> int: ...  # noqa: D102

    @property
    def audio_channels(self) -> int: ...  # noqa: D102

    @property
    def members(self) -> Sequence[SegmentModel]: ...  # noqa: D102

    @property
    def warnings(self) -> Sequence[str]: ...  # noqa: D102

    def workers(self, count: int) -> AbstractContextManager[ThreadPoolExecutor]:
        """Return a pool of ``count`` threads that share the processor between them."""
        ...


class HasStems(Protocol):
    """A model, or the card of one."""

    @property
    def stems(self) -> tuple[str, ...]: ...  # noqa: D102


def choose_stems(wanted: Sequence[str] | None, model: HasStems) -> tuple[str, ...]:
    """Return the stems to deliver, in the model's order; all of them for None.

    Raises
    ------
    JobError
        The model does not know one of them.
    """
    if wanted is None:
        return model.stems
    unknown = [stem for stem in wanted if stem not in model.stems]
    if unknown or not wanted:
        known = ", ".join(model.stems)
        raise JobError(f"no stem is called '{', '.join(unknown)}'; this model has {known}")
    return tuple(stem for stem in model.stems if stem in wanted)
