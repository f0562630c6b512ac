"""The separator: any clip in, its stems out, on their frames; see also test_bags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
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
    """A model of one member whose stems are known: the input times 0.75, and times 0.25."""

    name = "fixed"
    stems = ("most", "rest")
    sample_rate_hz = 44100
    audio_channels = 2
    warnings = ()
    segment_frames = 30_000
    weights = (1.0, 1.0)

    def __init__(self) -> None:
        self.calls = 0
        self.members = (self,)

    segments_at_once = 1

    def valid_frames(self, frames: int) -> int:
        return -(-frames // 1024) * 1024 + 512

    def separate_segment(
        self, mixture: NDArray[np.float32], stems: Sequence[int]
    ) -> NDArray[np.float32]:
        self.calls += 1
        assert mixture.dtype == np.float32
        assert mixture.shape[-1] % 1024 == 512
        parts = [mixture * (0.75, 0.25)[stem] for stem in stems]
        return np.stack(parts, axis=1).astype(np.float32)

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


def test_only_wanted_stems_are_carried() -> None:
    source = ArraySource(noise(2, 100_001), 48000)
    whole = run(source, FixedModel(), shifts=2)[1]
    blocks = list(separate(source, FixedModel(), SeparationOptions(shifts=2), stems=[1]))
    stems = np.concatenate([block.stems for block in blocks], axis=-1)
    np.testing.assert_array_equal(stems, whole[1:])


def test_only_known_stems_are_chosen() -> None:
    model = FixedModel()
    assert choose_stems(None, model) == ("most", "rest")
    assert choose_stems(["rest", "most"], model) == ("most", "rest")
    with pytest.raises(JobError, match="most, rest"):
        choose_stems(["vocals"], model)
