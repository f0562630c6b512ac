"""From audio to its spectrogram and back, cut to columns as the hybrid Demucs networks do.

A Hann window of `window_frames`, moved by a quarter of that; orthonormal scaling; the bin at the
Nyquist frequency is left out. How the ends are treated is a matter of :class:`Framing`.
"""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Framing", "Spectrogram", "pad_reflecting"]

QUARTERS = 4  # a window is four hops long


class Framing(Enum):
    """Where columns start, and what is beyond the ends of the audio."""

    ALIGNED = "aligned"
    """A column for each hop, the first centred on the middle of the first hop: strided
    convolutions cut the waveform in the same way. Beyond the ends the audio is reflected. Columns
    centred there are not kept, so that the inverse fades over 1.5 hops at either end."""

    ALIGNED_OLD = "aligned, old"
    """The same with silence beyond the ends, and an inverse shifted by 1.5 hops: a slip in models
    of the Music Demixing Challenge 2021, which learned to live with it."""

    CENTERED = "centered"
    """The first column centred on the first frame; reflected ends; one column more than whole
    hops. This is what ``torch.stft`` and ``torch.istft`` do by default."""


class Spectrogram(nn.Module):
    """Short-time Fourier transform and its inverse.

    Parameters
    ----------
    window_frames : int
        Length of the window and of the transform; a multiple of 8.
    framing : Framing
        How the ends are treated.

    Notes
    -----
    Complex numbers live on the processor where the device (Apple's MPS) has none.
    """

    def __init__(self, window_frames: int, framing: Framing = Framing.ALIGNED) -> None:
        super().__init__()
        if window_frames <= 0 or window_frames % (2 * QUARTERS):
            raise ValueError(f"window_frames must be a multiple of 8, not {window_frames}")
        self.window_frames = window_frames
        self.hop_frames = window_frames // QUARTERS
        self.framing = framing
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(window_frames), persistent=False)
        self._envelope_kept: tuple[tuple[int, torch.device], Tensor] | None = None

    def columns(self, frames: int) -> int:
        """Count the columns of a clip of `frames`."""
        if self.framing is Framing.CENTERED:
            return 1 + frames // self.hop_frames
        return math.ceil(frames / self.hop_frames)

    def forward(self, audio: Tensor) -> Tensor:
        """Analyse audio.

        Parameters
        ----------
        audio : Tensor
            (..., frames), float32, at least 1 frame.

        Returns
        -------
        Tensor
            (..., window_frames / 2, columns), complex64.
        """
        *others, frames = audio.shape
        audio = _on_complex_device(audio.reshape(-1, frames))
        margin = self.hop_frames * 3 // 2
        if self.framing is Framing.CENTERED:
            audio = pad_reflecting(audio, 2 * self.hop_frames, 2 * self.hop_frames)
        else:
            right = margin + self.columns(frames) * self.hop_frames - frames
            if self.framing is Framing.ALIGNED:
                audio = pad_reflecting(audio, margin, right)
            else:
                audio = F.pad(audio, (margin, right))
        spectrum = torch.stft(
            audio,
            self.window_frames,
            self.hop_frames,
            window=self.window.to(audio.device),
            center=False,
            normalized=True,
            return_complex=True,
        )
        return spectrum[:, :-1].view(*others, -1, spectrum.shape[-1])

    def inverse(self, spectrum: Tensor, frames: int) -> Tensor:
        """Synthesise audio.

        Parameters
        ----------
        spectrum : Tensor
            (..., window_frames / 2, columns), complex64, with the columns of `frames`. Fastest
            where the bins of a column lie side by side.
        frames : int
            Length of the audio.

        Returns
        -------
        Tensor
            (..., frames), float32, on the spectrum's device.
        """
        *others, bins, columns = spectrum.shape
        rows = spectrum.transpose(-1, -2).reshape(-1, columns, bins)
        window = self.window.to(rows.device)
        hops = rows.new_zeros(
            len(rows), columns + QUARTERS - 1, self.hop_frames, dtype=window.dtype
        )
        # Row by row, so that what the overlapping windows hold is never there all at once.
        for row, hops_of_row in zip(rows, hops, strict=True):
            windows = torch.fft.irfft(row, self.window_frames, norm="ortho").mul_(window)
            _overlap_add(windows, hops_of_row)
        audio = hops.flatten(1)
        if self.framing is Framing.ALIGNED:
            start = self.hop_frames * 3 // 2
            audio = audio[:, start : start + frames] / 1.5  # what squared windows add up to
        else:
            start = 0 if self.framing is Framing.ALIGNED_OLD else 2 * self.hop_frames
            envelope = self._envelope(columns, rows.device)
            audio = audio[:, start : start + frames] / envelope[start : start + frames]
        return audio.view(*others, frames)

    def _envelope(self, columns: int, device: torch.device) -> Tensor:
        """Add up the squared windows that cover each frame; the last answer is kept."""
        key = (columns, device)
        kept = self._envelope_kept
        if kept is not None and kept[0] == key:
            return kept[1]
        window = self.window.to(device)
        # The old framing has two columns of silence before and after, which count too.
        silent = 2 if self.framing is Framing.ALIGNED_OLD else 0
        count = columns + 2 * silent
        hops = window.new_zeros(count + QUARTERS - 1, self.hop_frames)
        _overlap_add((window * window).expand(count, -1), hops)
        envelope = hops.flatten()[silent * self.hop_frames :]
        self._envelope_kept = (key, envelope)
        return envelope


def pad_reflecting(audio: Tensor, left: int, right: int) -> Tensor:
    """Extend audio by its reflection at both ends.

    Audio too short to be reflected that far is first extended by silence, as little as needed,
    and rather at the end than at the start. (batch, frames) becomes (batch, left + frames +
    right).
    """
    missing = max(left, right) + 1 - audio.shape[-1]
    if missing > 0:
        silence_after = min(right, missing)
        silence_before = missing - silence_after
        audio = F.pad(audio, (silence_before, silence_after))
        left, right = left - silence_before, right - silence_after
    return F.pad(audio[:, None], (left, right), mode="reflect")[:, 0]


def _overlap_add(windows: Tensor, hops: Tensor) -> None:
    """Add windows (columns, 4 hops) up in (columns + 3, frames of a hop)."""
    columns = len(windows)
    for quarter, part in enumerate(windows.view(columns, QUARTERS, -1).unbind(1)):
        hops[quarter : quarter + columns] += part


def _on_complex_device(x: Tensor) -> Tensor:
    """Move to the processor what is on a device without complex numbers."""
    return x.cpu() if x.device.type == "mps" else x
