"""A loaded model as a function of arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.separator.memory import FrugalNetwork
from bridge.separator.model import SegmentModel
from models.allocator import keep_freed_memory
from models.errors import ModelError
from models.registry import BagCard, Bundle, Member, best_installed, load

AUTO = "auto"

Precision: TypeAlias = Literal["auto", "float32", "float16"]


class TorchModel:
    """A loaded model as the separator sees it; a :class:`~bridge.separator.StemModel`.

    Parameters
    ----------
    bundle
        What :func:`models.registry.load` gave.
    stems
        The stems that it was loaded for; None for all. It can be asked for no other.
    half
        Whether to compute in half precision where that is safe (CUDA only).
    """

    def __init__(
        self, bundle: Bundle, stems: Sequence[str] | None = None, *, half: bool = False
    ) -> None:
        card = bundle.card
        self.name = card.name
        self.stems = card.stems
        self.sample_rate_hz = card.sample_rate_hz
        self.audio_channels = card.audio_channels
        self.warnings: list[str] = []
        self.members = tuple(self._members(bundle, stems or card.stems, half))
        self.device = str(_device_of(bundle.members[0]))
        self._on_processor = self.device == "cpu"

    def _members(self, bundle: Bundle, stems: Sequence[str], half: bool) -> Iterator[SegmentModel]:
        loaded = iter(bundle.members)
        if not isinstance(bundle.card, BagCard):
            yield _TorchMember(next(loaded), self, half)
            return
        wanted = [bundle.card.stems.index(stem) for stem in stems]
        for member in bundle.card.members:
            if any(member.weights[stem] for stem in wanted):
                yield _TorchMember(next(loaded), self, half)
            else:
                yield _AbsentMember(member.weights)

    def warn(self, line: str) -> None:
        """Keep a line for the user; the same one only once."""
        if line not in self.warnings:
            self.warnings.append(line)

    @contextmanager
    def workers(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Provide ``count`` threads that share the processor's cores between them.

        An accelerator is busy with one.
        """
        count = count if self._on_processor else 1
        threads = max(1, (os.cpu_count() or 1) // count)
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _TorchMember:
    """A network that was loaded; a :class:`~bridge.separator.SegmentModel`."""

    def __init__(self, member: Member, model: TorchModel, half: bool) -> None:
        self.segment_frames = member.segment_frames
        self.segments_at_once = member.segments_at_once
        self.weights = member.weights
        self._member = member
        self._half = half
        self._network = FrugalNetwork(
            self._run,
            valid_frames=member.valid_frames,
            least_frames=model.sample_rate_hz,
            crossfade_frames=model.sample_rate_hz // 2,
            device=str(_device_of(member)),
            to_processor=lambda: member.network.to("cpu"),
            warn=model.warn,
        )

    def valid_frames(self, frames: int) -> int:
        return self._member.valid_frames(frames)

    def separate_segment(
        self, mixture: NDArray[np.float32], stems: Sequence[int]
    ) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._network.separate(
            torch.from_numpy(np.ascontiguousarray(mixture)), stems
        ).numpy()
        return array

    def _run(self, mixture: torch.Tensor, stems: Sequence[int]) -> torch.Tensor:
        if not self._half or _device_of(self._member).type != "cuda":
            return self._member.separate_segment(mixture, stems)
        with torch.autocast("cuda", torch.float16):
            return self._member.separate_segment(mixture, stems).float()


class _AbsentMember:
    """A network that the wanted stems do not need, and that was not loaded."""

    segment_frames = 1
    segments_at_once = 1

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = weights

    def valid_frames(self, frames: int) -> int:
        return frames

    def separate_segment(self, mixture: NDArray[np.float32], stems: Sequence[int]) -> NoReturn:
        raise ValueError(f"the model was not loaded for the stems {tuple(stems)}")


def load_model(
    name: str | Path,
    device: str = AUTO,
    stems: Sequence[str] | None = None,
    *,
    precision: Precision = "auto",
) -> TorchModel:
    """Load a model by name or path onto a device.

    Parameters
    ----------
    name
        A name of ``stembridge models list``, the path of a model file, or ``auto`` for the best
        that is installed.
    device
        ``auto`` (an accelerator where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps`` ...
    stems
        The stems that will be asked for; None for all. Networks that only others need are not
        read.
    precision
        ``float32``, or on CUDA devices ``float16``, which computes the layers that bear it in
        half precision; ``auto`` is ``float32``.

    Raises
    ------
    models.errors.ModelError
        Unknown name or stem, weights that cannot be trusted, or a device that is not there or
        cannot compute in that precision.
    """
    found = best_installed() if str(name) == AUTO else name
    chosen_device = best_device() if device == AUTO else device
    half = precision == "float16"
    if half and not chosen_device.startswith("cuda"):
        raise ModelError(
            f"half precision needs a CUDA device, not '{chosen_device}'; leave out --precision"
        )
    if chosen_device == "cpu":
        keep_freed_memory()
    return TorchModel(load(found, chosen_device, stems), stems, half=half)


def best_device() -> str:
    """Return the name of the fastest device that torch finds here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device_of(member: Member) -> torch.device:
    return next(member.network.parameters()).device
