"""The separator: equal to the public reference, exact in its sums, bounded in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bridge.errors import JobError
from bridge.separator import SeparationOptions, choose_stems, separate


class ArraySource:
    """A clip in memory, read in blocks of an odd size."""

    def __init__(self, audio: NDArray[np.float32], sample_rate_hz: int) -> None:
        self.audio = audio
        self.sample_rate_hz = sample_rate_hz
        self.channels, self.frames = audio.shape

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, self.frames, 7001):
            yield self.audio[:, start : start + 7001]


class FixedModel:
    """A model whose stems are known: the input times 0.75, and times 0.25."""

    stems = ("most", "rest")
    sample_rate_hz = 44100
    audio_channels = 2
    segment_frames = 30_000

    def __init__(self) -> None:
        self.calls = 0

    def valid_frames(self, frames: int) -> int:
        return -(-frames // 1024) * 1024 + 512

    def separate_segment(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        assert mixture.dtype == np.float32
        assert mixture.shape[-1] % 1024 == 512
        return np.stack([mixture * 0.75, mixture * 0.25], axis=1).astype(np.float32)

    @contextmanager
    def workers(self, count: int) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(count) as pool:
            yield pool


def noise(channels: int, frames: int, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((channels, frames)) * 0.1 + 0.01).astype(np.float32)


def run(
    source: ArraySource, model: object, **options: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    blocks = list(separate(source, model, SeparationOptions(**options)))  # type: ignore[arg-type]
    return (
        np.concatenate([block.mixture for block in blocks], axis=-1),
        np.concatenate([block.stems for block in blocks], axis=-1),
    )


class ReferenceModel:
    """A network of the public package, as our separator sees it."""

    stems = ("drums", "bass", "other", "vocals")
    sample_rate_hz = 44100
    audio_channels = 2

    def __init__(self, segment_seconds: float) -> None:
        from demucs.demucs import Demucs

        torch.manual_seed(1)
        self.network = Demucs(
            list(self.stems), channels=4, depth=4, lstm_layers=0, resample=False, segment=1
        ).eval()
        self.network.segment = segment_seconds
        self.segment_frames = int(44100 * segment_seconds)

    def valid_frames(self, frames: int) -> int:
        return int(self.network.valid_length(frames))

    @torch.no_grad()
    def separate_segment(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self.network(torch.from_numpy(mixture)).numpy()
        return output


@pytest.mark.parametrize("shifts", [0, 1, 3])
@pytest.mark.parametrize(("seconds", "overlap"), [(3.37, 0.25), (0.4, 0.25), (2.0, 0.6), (2.5, 0)])
def test_equals_the_public_reference(seconds: float, overlap: float, shifts: int) -> None:
    from demucs.apply import apply_model

    model = ReferenceModel(segment_seconds=1.0)
    audio = noise(2, int(seconds * 44100))
    level = torch.from_numpy(audio).mean(0)
    mixture = (torch.from_numpy(audio) - level.mean()) / (level.std() + 1e-8)
    random.seed(11)
    expected = apply_model(model.network, mixture[None], shifts=shifts, overlap=overlap)[0]
    expected = expected * (level.std() + 1e-8) + level.mean()

    _, stems = run(ArraySource(audio, 44100), model, shifts=shifts, overlap=overlap, seed=11)
    assert stems.shape == expected.shape
    assert np.abs(expected.numpy()).max() > 1e-3
    np.testing.assert_allclose(stems, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("rate_hz", [22050, 44100, 48000, 96000])
@pytest.mark.parametrize("frames", [1, 100, 48001])
def test_same_rate_channels_and_frames_come_out(channels: int, rate_hz: int, frames: int) -> None:
    audio = noise(channels, frames)
    mixture, stems = run(ArraySource(audio, rate_hz), FixedModel())
    assert stems.shape == (2, channels, frames)
    assert stems.dtype == np.float32
    np.testing.assert_array_equal(mixture, audio)


@pytest.mark.parametrize("rate_hz", [22050, 44100, 48000, 96000])
def test_stems_stay_on_their_frames(rate_hz: int) -> None:
    frames = 3 * rate_hz + 17
    time = np.arange(frames) / rate_hz
    burst = np.sin(2 * np.pi * 1000 * time) * np.exp(-(((time - 1.5) / 0.01) ** 2))
    audio = np.stack([burst, -0.5 * burst]).astype(np.float32)
    _, stems = run(ArraySource(audio, rate_hz), FixedModel(), shifts=2)
    lags = np.correlate(stems[0, 0], audio[0, 100:-100], "valid")
    assert int(np.argmax(lags)) == 100
    np.testing.assert_allclose(stems.sum(0), audio, atol=2e-4)


def test_jobs_and_repetition_change_nothing() -> None:
    source = ArraySource(noise(2, 200_000), 48000)
    once = run(source, FixedModel(), shifts=2, jobs=1)[1]
    again = run(source, FixedModel(), shifts=2, jobs=1)[1]
    parallel = run(source, FixedModel(), shifts=2, jobs=3)[1]
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, parallel)


def test_silence_needs_no_network() -> None:
    model = FixedModel()
    _, stems = run(ArraySource(np.zeros((2, 99_999), np.float32), 48000), model)
    assert stems.shape == (2, 2, 99_999)
    assert not stems.any()
    assert model.calls == 0


def test_progress_counts_every_segment_and_may_cancel() -> None:
    source, model = ArraySource(noise(2, 300_000), 44100), FixedModel()
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(separate(source, model, SeparationOptions(), progress))
    assert told == [(1, 14), (2, 14), (3, 14)]
    assert model.calls == 3


def test_only_known_stems_are_chosen() -> None:
    model = FixedModel()
    assert choose_stems(None, model) == ("most", "rest")
    assert choose_stems(["rest", "most"], model) == ("most", "rest")
    with pytest.raises(JobError, match="most, rest"):
        choose_stems(["vocals"], model)
