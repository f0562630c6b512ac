"""Streaming sample-rate conversion with exact alignment."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray


class Resampler:
    """Convert blocks from one rate to another; what comes out is aligned to what went in.

    libsoxr's HQ recipe: -133 dB THD+N. Equal rates pass blocks through untouched.

    Parameters
    ----------
    from_hz, to_hz
        Sample rates.
    channels
        Channel count of all blocks.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._stream: soxr.ResampleStream | None = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32")
        self._channels = channels

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is ready after ``block`` ``(channels, frames)``; it may be nothing."""
        return self._convert(block, last=False)

    def finish(self) -> NDArray[np.float32]:
        """Return the rest; together round(frames * to / from) frames have then come out."""
        return self._convert(np.zeros((self._channels, 0), np.float32), last=True)

    def _convert(self, block: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._stream is None:
            return block
        converted = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        return np.ascontiguousarray(converted.T, dtype=np.float32)
