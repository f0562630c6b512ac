"""A loaded model as a function of arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.registry import Bundle, load


class TorchModel:
    """A loaded model as the separator sees it; a :class:`~bridge.separator.StemModel`.

    Parameters
    ----------
    bundle
        What :func:`models.registry.load` gave.
    """

    def __init__(self, bundle: Bundle) -> None:
        card = bundle.card
        self.name = card.name
        self.stems = card.stems
        self.sample_rate_hz = card.sample_rate_hz
        self.audio_channels = card.audio_channels
        self.segment_frames = card.segment_frames
        self._bundle = bundle

    def valid_frames(self, frames: int) -> int:
        """Return the least input length of at least ``frames`` that the network takes."""
        return self._bundle.valid_frames(frames)

    def separate_segment(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(batch, stems, channels, frames)`` of ``(batch, channels, frames)``."""
        stems = self._bundle.separate_segment(torch.from_numpy(np.ascontiguousarray(mixture)))
        array: NDArray[np.float32] = stems.numpy()
        return array

    @contextmanager
    def workers(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Provide ``count`` threads that share the processor's cores between them."""
        threads = max(1, (os.cpu_count() or 1) // count)
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def load_model(name: str | Path, device: str = "auto") -> TorchModel:
    """Load a model by name or path onto a device.

    Parameters
    ----------
    name
        A name of ``stembridge models list``, or the path of a model file.
    device
        ``auto`` (an accelerator where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps`` ...

    Raises
    ------
    models.errors.ModelError
        Unknown name, weights that cannot be trusted, or a device that is not there.
    """
    return TorchModel(load(name, best_device() if device == "auto" else device))


def best_device() -> str:
    """Return the name of the fastest device that torch finds here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
