"""Spectrograms against torch's own transforms, and back to the audio they came from."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.spectrogram import Framing, Spectrogram, pad_reflecting

WINDOW = 256
HOP = WINDOW // 4
LENGTHS = [1, 2, 63, 64, 65, 96, 97, 127, 128, 129, 1000, 5 * HOP, 20 * HOP + 1]


def padded_by_hand(audio: torch.Tensor, framing: Framing) -> torch.Tensor:
    """The audio that a transform without any padding of its own cuts into the same columns."""
    frames = audio.shape[-1]
    if framing is Framing.CENTERED:
        left = right = 2 * HOP
    else:
        left = 3 * HOP // 2
        right = left + math.ceil(frames / HOP) * HOP - frames
    if framing is Framing.ALIGNED_OLD:
        return F.pad(audio, (left, right))
    if frames > max(left, right):
        return F.pad(audio, (left, right), mode="reflect")
    return pad_reflecting(audio, left, right)


def torch_spectrum(audio: torch.Tensor) -> torch.Tensor:
    return torch.stft(
        audio,
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW),
        center=False,
        normalized=True,
        return_complex=True,
    )[:, :-1]


@pytest.mark.parametrize("framing", Framing)
@pytest.mark.parametrize("frames", LENGTHS)
def test_analysis_equals_torch(framing: Framing, frames: int) -> None:
    torch.manual_seed(1)
    audio = torch.randn(3, frames)
    spectrogram = Spectrogram(WINDOW, framing)
    spectrum = spectrogram(audio)
    assert spectrum.shape == (3, WINDOW // 2, spectrogram.columns(frames))
    torch.testing.assert_close(spectrum, torch_spectrum(padded_by_hand(audio, framing)))


@pytest.mark.parametrize("framing", Framing)
@pytest.mark.parametrize("frames", LENGTHS)
def test_synthesis_equals_torch(framing: Framing, frames: int) -> None:
    """Of any spectrum, also of one that no audio has; 1e-6 of the peak."""
    torch.manual_seed(2)
    spectrogram = Spectrogram(WINDOW, framing)
    columns = spectrogram.columns(frames)
    spectrum = torch.randn(2, WINDOW // 2, columns, dtype=torch.complex64)
    silent = 0 if framing is Framing.CENTERED else 2
    start = {Framing.CENTERED: 0, Framing.ALIGNED: 3 * HOP // 2, Framing.ALIGNED_OLD: 0}[framing]
    # torch cuts two hops at the start, which the silent columns make up for.
    expected = torch.istft(
        F.pad(spectrum, (silent, silent, 0, 1)),
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW),
        normalized=True,
        length=start + frames,
    )[:, start:]
    for _ in range(2):  # the second time with what the first has kept
        audio = spectrogram.inverse(spectrum, frames)
        assert audio.shape == (2, frames)
        assert (audio - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("frames", [5 * HOP, 1000, 20 * HOP + 1])
def test_there_and_back(frames: int) -> None:
    """A low tone comes back; only what is at the Nyquist frequency is lost."""
    tone = torch.sin(0.05 * torch.arange(frames)) + torch.tensor([[0.5], [-0.2]])
    centered = Spectrogram(WINDOW, Framing.CENTERED)
    back = centered.inverse(centered(tone), frames)
    torch.testing.assert_close(back, tone, rtol=0, atol=1e-3)
    # Columns that would help at the ends are not kept here.
    aligned = Spectrogram(WINDOW, Framing.ALIGNED)
    inner = slice(3 * HOP // 2, (frames // HOP) * HOP - 3 * HOP // 2)
    back = aligned.inverse(aligned(tone), frames)
    torch.testing.assert_close(back[:, inner], tone[:, inner], rtol=0, atol=1e-3)
    # The old way gives it 1.5 hops late.
    old = Spectrogram(WINDOW, Framing.ALIGNED_OLD)
    back = old.inverse(old(tone), frames)
    early, there = slice(3 * HOP, 3 * HOP + HOP), slice(3 * HOP // 2, 3 * HOP // 2 + HOP)
    torch.testing.assert_close(back[:, early], tone[:, there], rtol=0, atol=1e-3)


def test_the_kept_envelope_is_that_of_the_length() -> None:
    """A second length does not get the first one's envelope."""
    spectrogram = Spectrogram(WINDOW, Framing.CENTERED)
    for frames in (500, 2000, 500):
        audio = torch.ones(1, frames)
        back = spectrogram.inverse(spectrogram(audio), frames)
        torch.testing.assert_close(back, audio, rtol=0, atol=1e-5)


def test_more_dimensions_and_strides() -> None:
    torch.manual_seed(4)
    spectrogram = Spectrogram(WINDOW)
    audio = torch.randn(2, 3, 4, 500)
    spectrum = spectrogram(audio)
    assert spectrum.shape == (2, 3, 4, WINDOW // 2, 8)
    torch.testing.assert_close(spectrum[1, 2], spectrogram(audio[1, 2]))
    back = spectrogram.inverse(spectrum, 500)
    torch.testing.assert_close(spectrogram.inverse(spectrum.contiguous(), 500), back)
    torch.testing.assert_close(spectrogram.inverse(spectrum[1, 2], 500), back[1, 2])


def test_short_audio_is_reflected_after_silence() -> None:
    audio = torch.tensor([[1.0, 2.0]])
    # One frame of silence at the end and one at the start make four, of which three are mirrored.
    assert pad_reflecting(audio, 3, 1).tolist() == [[2, 1, 0, 1, 2, 0]]


def test_long_audio_is_reflected() -> None:
    audio = torch.tensor([[1.0, 2.0, 3.0]])
    assert pad_reflecting(audio, 2, 1).tolist() == [[3, 2, 1, 2, 3, 2]]


@pytest.mark.parametrize("window_frames", [0, -8, 4, 12, 257])
def test_windows_that_are_refused(window_frames: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        Spectrogram(window_frames)


def test_nothing_to_save() -> None:
    assert Spectrogram(WINDOW).state_dict() == {}
