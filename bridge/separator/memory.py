"""What to do when a device has too little memory for a segment.

First smaller pieces of the segment, which overlap and are crossfaded; then the processor, which
has the machine's whole memory. Both change the outcome or the speed a little, so the user is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bridge.errors import JobFailed

_SIGNS = (
    "out of memory",  # CUDA, MPS
    "not enough memory",
    "can't allocate memory",  # the processor's allocator
    "alloc_failed",  # cuBLAS, cuDNN
)


class FrugalNetwork:
    """A network that is asked for less at a time once memory runs out.

    What was learnt of the memory is kept for the segments to come.

    Parameters
    ----------
    run
        The network: ``(batch, channels, frames)`` and stems to ``(batch, stems, channels,
        frames)``.
    valid_frames
        The least input length of at least the given one that it takes.
    least_frames
        Pieces shorter than this are not tried.
    crossfade_frames
        What two pieces of a segment have in common, at least.
    device
        Where the network is.
    to_processor
        Moves it to the processor.
    warn
        Told what had to be done.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Sequence[int]], Tensor],
        *,
        valid_frames: Callable[[int], int],
        least_frames: int,
        crossfade_frames: int,
        device: str,
        to_processor: Callable[[], object],
        warn: Callable[[str], None],
    ) -> None:
        self._run = run
        self._valid_frames = valid_frames
        self._least_frames = least_frames
        self._crossfade_frames = crossfade_frames
        self._device = device
        self._to_processor = to_processor
        self._warn = warn
        self._too_many_frames: int | None = None  # what the memory was known not to do for

    def separate(self, mixture: Tensor, stems: Sequence[int]) -> Tensor:
        """Return the stems of a segment.

        Raises
        ------
        JobFailed
            The processor's memory does not do for the smallest piece either.
        """
        frames = mixture.shape[-1]
        if self._too_many_frames is None or frames < self._too_many_frames:
            separated = self._tried(mixture, stems)
            if separated is not None:
                return separated
            self._too_many_frames = min(frames, self._too_many_frames or frames)
            _give_back_what_is_cached(self._device)
        piece_frames = self._piece_frames(frames)
        if piece_frames is not None:
            self._warn(
                f"too little memory on the device '{self._device}' for whole segments: they are "
                "separated in smaller pieces, which may sound a little worse; close other programs"
            )
            first = self.separate(mixture[..., :piece_frames], stems)
            second = self.separate(mixture[..., frames - piece_frames :], stems)
            return _crossfade(first, second, frames)
        if self._device == "cpu":
            raise JobFailed(
                "out of memory even for the smallest piece of the clip; close other programs, use "
                "--jobs 1, or choose a smaller model"
            )
        self._warn(
            f"too little memory on the device '{self._device}': the processor takes over, which "
            "is slower; close other programs or choose a smaller model"
        )
        self._to_processor()
        _give_back_what_is_cached(self._device)
        self._device = "cpu"
        self._too_many_frames = None
        return self.separate(mixture, stems)

    def _tried(self, mixture: Tensor, stems: Sequence[int]) -> Tensor | None:
        """Return None where memory ran out; nothing holds on to what was in it then."""
        try:
            return self._run(mixture, stems)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            return None

    def _piece_frames(self, frames: int) -> int | None:
        """Return the length of a piece, two of which make up ``frames``; None if that is none."""
        wanted_frames = (frames + self._crossfade_frames + 1) // 2
        if wanted_frames < self._least_frames:
            return None
        piece_frames = self._valid_frames(wanted_frames)
        # A network with a fixed training length takes nothing shorter.
        return piece_frames if piece_frames < frames else None


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)


def _give_back_what_is_cached(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device.startswith("mps"):
        torch.mps.empty_cache()


def _crossfade(first: Tensor, second: Tensor, frames: int) -> Tensor:
    """Join two pieces of equal length that together cover ``frames`` and overlap."""
    start, end = frames - second.shape[-1], first.shape[-1]
    rise = torch.arange(1, end - start + 1, dtype=torch.float32) / (end - start + 1)
    joined = torch.empty((*first.shape[:-1], frames))
    joined[..., :start] = first[..., :start]
    joined[..., end:] = second[..., end - start :]
    joined[..., start:end] = first[..., start:] + rise * (
        second[..., : end - start] - first[..., start:]
    )
    return joined
