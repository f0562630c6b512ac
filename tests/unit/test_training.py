"""Training: data, augmentation, loss, the loop and its resumption, on songs of noise."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models.demucs import Demucs, DemucsConfig
from models.train.__main__ import main
from models.train.augment import Augmentation, draw_batch
from models.train.data import STEMS, SongLibrary, read_song
from models.train.evaluate import evaluate, separate_song, table
from models.train.loop import PRESETS, STATE_FILE, Trainer, TrainingConfig, load_run
from models.train.loss import separation_loss

RATE_HZ = 44100
TINY = TrainingConfig(
    network=PRESETS["tiny"], steps=4, batch_size=2, segment_frames=4410, warmup_steps=2
)


def write_song(folder: Path, seed: int, seconds: float = 1.0, *, finished: bool = True) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for stem in STEMS:
        audio = rng.uniform(-0.2, 0.2, (int(seconds * RATE_HZ), 2))
        soundfile.write(folder / f"{stem}.flac", audio, RATE_HZ, subtype="PCM_16")
    if finished:
        (folder / "song.json").write_text("{}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, songs in (("train", 3), ("valid", 2), ("unseen", 2)):
        for seed in range(songs):
            write_song(tmp_path / "data" / split / f"song-{seed}", seed)
    return tmp_path / "data"


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    states = {"network": trainer.network.state_dict(), "average": trainer.average.state_dict()}
    return {f"{kind}.{key}": t for kind, state in states.items() for key, t in state.items()}


def test_library_takes_finished_songs_only_and_finds_new_ones(data: Path) -> None:
    write_song(data / "train" / "half-written", 9, finished=False)
    write_song(data / "train" / "broken", 9)
    (data / "train" / "broken" / "bass.flac").write_bytes(b"fLaC")
    library = SongLibrary(data, "train")
    assert [song.name for song in library.songs] == ["song-0", "song-1", "song-2"]
    write_song(data / "train" / "another", 5)
    assert library.rescan() == 1
    assert [song.name for song in library.songs] == ["another", "song-0", "song-1", "song-2"]
    assert library.seconds == pytest.approx(4)


def test_songs_are_read_as_written(data: Path) -> None:
    song = read_song(data / "train" / "song-1")
    bass, _ = soundfile.read(data / "train" / "song-1" / "bass.flac", dtype="float32")
    np.testing.assert_array_equal(song.sources(100, 50)[STEMS.index("bass")], bass[100:150].T)


def test_a_folder_without_songs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="render some"):
        evaluate(Trainer(TINY).average, tmp_path, "unseen")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path), "--steps", "1"]) == 2
    assert "render some" in capsys.readouterr().err


def test_batches_repeat_by_seed_and_differ_by_step(data: Path) -> None:
    library = SongLibrary(data, "train")
    draws = [
        draw_batch(library, np.random.default_rng(seed), 3, 5000, Augmentation())
        for seed in ([0, 1], [0, 1], [0, 2])
    ]
    assert draws[0].shape == (3, 4, 2, 5000)
    assert draws[0].dtype == np.float32
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_augmentations_can_be_switched_off(data: Path) -> None:
    """Without any of them, an example is a segment of one song, up to signs and channels."""
    library = SongLibrary(data, "train")
    plain = Augmentation(remix=0, varispeed=0, gain_db=0, drop=0, equalize=0)
    (example,) = draw_batch(library, np.random.default_rng(4), 1, 1000, plain)
    candidates = [song.stems / np.float32(32768) for song in library.songs]
    for stem, source in enumerate(example):
        found = False
        for song in candidates:
            for channel in range(2):
                for sign in (1, -1):
                    starts = np.flatnonzero(song[stem, channel] == sign * source[0, 0])
                    found |= any(
                        np.array_equal(song[stem, channel, start:][:1000], sign * source[0])
                        for start in starts
                    )
        assert found


def test_a_dropped_stem_leaves_others(data: Path) -> None:
    library = SongLibrary(data, "train")
    batch = draw_batch(library, np.random.default_rng(0), 8, 1000, Augmentation(drop=1.0))
    sounding = (np.abs(batch).max(axis=(2, 3)) > 0).sum(axis=1)
    assert (sounding == 1).all()


def test_short_songs_are_padded(data: Path) -> None:
    library = SongLibrary(data, "train")
    batch = draw_batch(library, np.random.default_rng(0), 1, 2 * RATE_HZ, Augmentation())
    assert batch.shape[-1] == 2 * RATE_HZ


def test_loss_is_the_negative_sdr() -> None:
    torch.manual_seed(0)
    sources = torch.randn(2, 4, 2, 2000)
    loss = separation_loss(0.9 * sources, sources)
    torch.testing.assert_close(loss.sdr_db, torch.full((4,), 20.0), atol=1e-3, rtol=0)
    # 0.01 of error and the soft limit of 0.001
    assert loss.total.item() == pytest.approx(10 * np.log10(0.011), abs=1e-3)
    assert loss.leak.item() == 0


def test_loss_of_silent_stems_is_finite_and_falls_with_the_leak() -> None:
    torch.manual_seed(0)
    sources = torch.randn(1, 4, 2, 2000)
    sources[:, 2] = 0
    stems = sources.clone()
    stems[:, 2] = 0.5 * sources.sum(dim=1)
    leaking = separation_loss(stems, sources)
    stems[:, 2] *= 0.1
    better = separation_loss(stems, sources)
    assert leaking.leak.item() == pytest.approx(0.5, abs=1e-5)
    assert better.total < leaking.total
    assert torch.isnan(leaking.sdr_db[2])


@pytest.mark.parametrize("silent", ["one stem", "all"])
def test_loss_gradients_stay_finite(silent: str) -> None:
    sources = torch.zeros(1, 4, 2, 500)
    if silent == "one stem":
        sources[:, :3] = torch.randn(1, 3, 2, 500)
    for stems in (torch.zeros_like(sources), sources.clone(), torch.randn_like(sources)):
        stems.requires_grad_(True)
        separation_loss(stems, sources).total.backward()  # type: ignore[no-untyped-call]
        assert stems.grad is not None
        assert torch.isfinite(stems.grad).all()


def test_steps_move_the_weights_and_the_average_follows(data: Path) -> None:
    trainer = Trainer(TINY)
    before = weights_of(trainer)
    before = {key: tensor.clone() for key, tensor in before.items()}
    values = trainer.step(SongLibrary(data, "train"))
    assert np.isfinite(values["loss"])
    after = weights_of(trainer)
    assert all(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("preset", ["tiny", "tiny-demucs"])
def test_a_resumed_run_equals_an_unbroken_one(data: Path, tmp_path: Path, preset: str) -> None:
    library = SongLibrary(data, "train")
    config = replace(TINY, network=PRESETS[preset])
    unbroken = Trainer(config)
    unbroken.run(library, tmp_path / "unbroken")

    first = Trainer(config)
    first.run(library, tmp_path / "broken", stopped=lambda: first.step_count >= 2)
    assert first.step_count == 2
    second = Trainer.load(tmp_path / "broken")
    assert second.step_count == 2
    second.run(library, tmp_path / "broken")

    assert second.step_count == unbroken.step_count == 4
    resumed = weights_of(second)
    for key, tensor in weights_of(unbroken).items():
        torch.testing.assert_close(resumed[key], tensor, rtol=0, atol=0)


def test_the_rate_warms_up_and_comes_down() -> None:
    trainer = Trainer(replace(TINY, steps=100, warmup_steps=10, learning_rate=1.0))
    rates = []
    for step in range(101):
        trainer.step_count = step
        rates.append(trainer.learning_rate)
    assert rates[0] == pytest.approx(0.1)
    assert int(np.argmax(rates)) == 9
    assert rates[50] == pytest.approx(0.505, abs=0.01)
    assert rates[-1] == pytest.approx(0.01)
    timed = Trainer(replace(TINY, steps=None, minutes=10.0, warmup_steps=0))
    timed.elapsed_seconds = 300
    assert timed.progress == pytest.approx(0.5)


def test_a_schedule_has_one_measure() -> None:
    for minutes, steps in ((None, None), (1.0, 5)):
        with pytest.raises(ValueError, match="minutes or steps"):
            TrainingConfig(network=PRESETS["tiny"], minutes=minutes, steps=steps)


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, ("true",))

    torch.save({"config": Harmful()}, tmp_path / STATE_FILE)
    with pytest.raises(Exception, match="weights_only"):
        load_run(tmp_path)


def test_command_trains_logs_and_stops_on_a_signal(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-P", "-m", "models.train", "--data", str(data), "--out", str(run)]
    command += ["--model", "tiny", "--threads", "1", "--batch-size", "1"]
    command += ["--segment-frames", "4410"]
    done = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (run / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["step"]) == 3
    assert all(np.isfinite(float(row[f"valid_{stem}"])) for stem in STEMS)

    again = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "--resume" in again.stderr

    longer = subprocess.Popen(
        [*command, "--steps", "1000000", "--resume"], stdout=subprocess.PIPE, text=True
    )
    with longer:
        assert longer.stdout is not None
        assert "from step 3" in longer.stdout.readline()
        time.sleep(1)
        longer.send_signal(signal.SIGTERM)
        longer.stdout.read()
    assert longer.returncode == 0
    assert load_run(run)["step_count"] > 3
    assert not list(run.glob("*.part"))


def test_segments_fade_without_a_trace() -> None:
    """Segmentwise separation by a network that copies its input is a copy."""

    class Copy(Demucs):
        def forward(self, mixture: torch.Tensor) -> torch.Tensor:
            return mixture[:, None].repeat(1, 4, 1, 1)

    network = Copy(DemucsConfig(channels=2, depth=1, segment_frames=1000))
    for frames in (10, 999, 1000, 1001, 4321):
        mixture = np.random.default_rng(frames).standard_normal((2, frames)).astype(np.float32)
        stems = separate_song(network, mixture)
        np.testing.assert_allclose(stems, np.repeat(mixture[None], 4, axis=0), atol=1e-6)


def test_evaluation_compares_with_what_takes_no_learning(data: Path) -> None:
    scores = evaluate(Trainer(TINY).average, data, "unseen")
    assert set(scores) == {"model", "mixture/4", "classic", "oracle mask"}
    for stem in STEMS:
        # Four equal noises: the error of a quarter of the mixture is 3/4 of a source's energy.
        assert scores["mixture/4"][stem]["median"] == pytest.approx(1.25, abs=0.1)
        assert scores["oracle mask"][stem]["mean"] > 2
    assert "oracle mask" in table(scores)
