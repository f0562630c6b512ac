"""Separating a clip into files, with a real network, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from wavinfo import WavInfoReader

from tests.conftest import CommandResult, random_model

STEMS = ("drums", "bass", "other", "vocals")
COMMAND = (sys.executable, "-P", "-m", "bridge.cli")


def music(channels: int, frames: int, rate_hz: int) -> NDArray[np.float32]:
    time_seconds = np.arange(frames) / rate_hz
    draw = np.random.default_rng(3)
    tones = [np.sin(2 * np.pi * 110 * (k + 1) * time_seconds) for k in range(channels)]
    noise = draw.standard_normal((channels, frames)) * 0.05
    return (0.3 * np.stack(tones) + noise).astype(np.float32)


Command = Callable[..., CommandResult]
Separate = Callable[..., dict[str, object]]


@pytest.fixture
def separate(stembridge: Command, tiny_model: Path) -> Separate:
    def run(clip: Path, output: Path, *more: object) -> dict[str, object]:
        done = stembridge("separate", clip, "-o", output, "--model", tiny_model, "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def read(path: str | Path) -> NDArray[np.float64]:
    audio, _ = soundfile.read(path, dtype="float64", always_2d=True)
    return audio.T


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "Mix.wav"
    soundfile.write(path, music(2, 200_003, 48000).T, 48000, subtype="FLOAT")
    return path


def assert_sums_to(result: dict[str, object], audio: NDArray[np.float64], error: float) -> None:
    files = [*(stem["path"] for stem in result["stems"]), result["residual"]["path"]]
    parts = [read(path) for path in files]
    assert all(part.shape == audio.shape for part in parts)
    assert np.abs(sum(parts) - audio).max() <= error


def test_the_files_sum_to_the_clip(separate: Separate, clip: Path, tmp_path: Path) -> None:
    result = separate(clip, tmp_path)
    assert list(result) == [
        "input",
        "sample_rate_hz",
        "frames",
        "model",
        "stems",
        "residual",
        "null_db",
        "real_time_factor",
    ]
    assert (result["sample_rate_hz"], result["frames"]) == (48000, 200_003)
    assert tuple(stem["name"] for stem in result["stems"]) == STEMS
    assert {path.name for path in tmp_path.iterdir()} == {
        f"Mix - {stem}.wav" for stem in (*STEMS, "residual")
    }
    assert_sums_to(result, read(clip), 1e-6)
    assert result["null_db"] < -120
    for stem in result["stems"]:
        peak = np.abs(read(stem["path"])).max()
        assert stem["peak_db"] == pytest.approx(20 * np.log10(peak), abs=0.01)
        assert peak > 1e-4


@pytest.mark.parametrize(
    ("channels", "rate_hz", "frames"),
    [(1, 44100, 50_001), (6, 48000, 30_001), (2, 96000, 60_001), (2, 22050, 100), (1, 48000, 1)],
)
def test_any_channels_rate_and_length(
    separate: Separate, tmp_path: Path, channels: int, rate_hz: int, frames: int
) -> None:
    path = tmp_path / "any.wav"
    soundfile.write(path, music(channels, frames, rate_hz).T, rate_hz, subtype="FLOAT")
    result = separate(path, tmp_path / "out")
    assert (result["sample_rate_hz"], result["frames"]) == (rate_hz, frames)
    assert_sums_to(result, read(path), 1e-6)


@pytest.mark.parametrize("kind", ["wav-int24", "flac"])
def test_integer_files_sum_within_their_last_bit(
    separate: Separate, clip: Path, tmp_path: Path, kind: str
) -> None:
    result = separate(clip, tmp_path, "--format", kind)
    assert_sums_to(result, read(clip), 2**-23)


def test_range_stems_shifts_and_jobs(separate: Separate, clip: Path, tmp_path: Path) -> None:
    options = ("--range", "1:3.5", "--stems", "vocals,bass", "--shifts", 2)
    result = separate(clip, tmp_path / "a", *options)
    assert [stem["name"] for stem in result["stems"]] == ["bass", "vocals"]
    assert_sums_to(result, read(clip)[:, 48000:168_000], 1e-6)
    assert WavInfoReader(result["stems"][0]["path"]).bext.time_reference == 48000
    again = separate(clip, tmp_path / "b", *options, "--jobs", 2)
    for first, second in zip(result["stems"], again["stems"], strict=True):
        np.testing.assert_allclose(read(first["path"]), read(second["path"]), atol=1e-6)


def test_two_runs_give_the_same_bytes(separate: Separate, clip: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        separate(clip, tmp_path / folder, "--shifts", 1)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_without_residual(separate: Separate, clip: Path, tmp_path: Path) -> None:
    result = separate(clip, tmp_path, "--no-residual")
    assert result["residual"] is None
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("options", [(), ("--no-residual",), ("--format", "wav-int24")])
def test_the_accompaniment_is_the_clip_without_the_other_stems(
    separate: Separate, clip: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    result = separate(clip, tmp_path, "--stems", "accompaniment,vocals", *options)
    assert [stem["name"] for stem in result["stems"]] == ["vocals", "accompaniment"]
    assert result["residual"] is None
    assert len(list(tmp_path.iterdir())) == 2
    parts = [read(stem["path"]) for stem in result["stems"]]
    error = 2**-23 if "--format" in options else 1e-7
    assert np.abs(sum(parts) - read(clip)).max() <= error
    assert np.abs(parts[1]).max() > 0.1


def test_wanted_stems_are_those_of_the_full_run(
    separate: Separate, clip: Path, tmp_path: Path
) -> None:
    whole = separate(clip, tmp_path / "whole", "--shifts", 1)
    some = separate(clip, tmp_path / "some", "--shifts", 1, "--stems", "vocals,accompaniment")
    whole_vocals = next(stem for stem in whole["stems"] if stem["name"] == "vocals")
    np.testing.assert_allclose(
        read(some["stems"][0]["path"]), read(whole_vocals["path"]), atol=1e-6
    )


def test_the_preset_is_taken_unless_told_otherwise(
    stembridge: Command, clip: Path, tmp_path: Path
) -> None:
    options = ("--quality", "preview", "--range", "0:1", "--stems", "vocals", "--json")
    done = stembridge("separate", clip, "-o", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "stembridge-small"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.wav",), "missing.wav: does not exist"),
        (("text.wav",), "text.wav: not a readable audio file"),
        (("empty.wav",), "empty.wav: the clip holds no audio"),
        (("clip.wav", "--range", "5:9"), "ends after the audio"),
        (("clip.wav", "--range", "x:9"), "not a range"),
        (("clip.wav", "--stems", "flute"), "no stem is called 'flute'; this model has drums"),
        (("clip.wav", "--stems", "accompaniment"), "for example --stems vocals,accompaniment"),
        (("clip.wav", "--precision", "float16", "--device", "cpu"), "needs a CUDA device"),
        (("clip.wav", "--quality", "superb"), "invalid choice: 'superb'"),
        (("clip.wav", "--model", "nothing"), "no model 'nothing'"),
        (("clip.wav", "--device", "cuda:7"), "cuda:7"),
        (("clip.wav", "--shifts", "-1"), "is not a count"),
        (("clip.wav", "--overlap", "1"), "is not a share"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    stembridge: Command,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    soundfile.write(tmp_path / "clip.wav", music(2, 1000, 44100).T, 44100)
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2)), 44100)
    (tmp_path / "text.wav").write_text("lyrics")
    model = () if "--model" in arguments else ("--model", tiny_model)
    monkeypatch.chdir(tmp_path)
    done = stembridge("separate", *arguments, "-o", "out", *model)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_a_file_with_nan_is_separated_with_a_warning(
    stembridge: Command, tmp_path: Path, tiny_model: Path
) -> None:
    audio = music(2, 20_000, 44100)
    audio[:, 5000] = (np.nan, np.inf)
    path = tmp_path / "nan.wav"
    soundfile.write(path, audio.T, 44100, subtype="FLOAT")
    done = stembridge("separate", path, "-o", tmp_path / "out", "--model", tiny_model)
    assert done.returncode == 0, done.stderr
    assert "2 values were no audio" in done.stderr
    for stem in (tmp_path / "out").iterdir():
        assert np.isfinite(read(stem)).all()


@pytest.mark.parametrize("name", ["🎸🎶 take", "e\u0301tude", "n" * 251, "COM1", "a  b. "])
def test_odd_names(separate: Separate, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, music(1, 500, 44100).T, 44100, subtype="FLOAT")
    result = separate(path, tmp_path / "out")
    assert_sums_to(result, read(path), 1e-6)


def long_clip(folder: Path) -> Path:
    path = folder / "long.wav"
    soundfile.write(path, np.tile(music(2, 441_000, 44100).T, (20, 1)), 44100)
    return path


def wait_for_parts(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size > 100_000 for part in folder.glob(".stembridge-*.part")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(clip: Path, output: Path, model: Path) -> subprocess.Popen[str]:
    output.mkdir(exist_ok=True)
    arguments = [*COMMAND, "separate", clip, "-o", output, "--model", model, "--jobs", 2]
    process = subprocess.Popen(
        list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_parts(process, output)
    return process


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_leaves_nothing(
    tmp_path: Path, tiny_model: Path, stop: signal.Signals
) -> None:
    process = start(long_clip(tmp_path), tmp_path / "out", tiny_model)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cancelled" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").iterdir())


def test_a_killed_run_leaves_no_final_name_and_the_next_one_cleans_up(
    separate: Separate, tiny_model: Path, tmp_path: Path
) -> None:
    process = start(long_clip(tmp_path), tmp_path / "out", tiny_model)
    process.kill()
    process.communicate()
    left = list((tmp_path / "out").iterdir())
    assert left
    assert all(path.suffix == ".part" for path in left)
    short = tmp_path / "short.wav"
    soundfile.write(short, music(2, 1000, 44100).T, 44100)
    separate(short, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_read_only_folder_is_one_error(
    stembridge: Command, tmp_path: Path, tiny_model: Path, clip: Path
) -> None:
    if os.geteuid() == 0:
        output = Path("/proc/stems")  # even root may not write there
    else:
        output = tmp_path / "read-only" / "stems"
        (tmp_path / "read-only").mkdir(mode=0o500)
    done = stembridge("separate", clip, "-o", output, "--model", tiny_model)
    assert done.returncode == 1
    assert str(output) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# Runs a command and prints what it printed, beside the peak of its resident memory.
_PEAK_MEMORY = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([json.loads(done.stdout), peak * (1 if sys.platform == "darwin" else 1024)]))
sys.exit(done.returncode)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_two_hours_fit_in_3_gb(tmp_path: Path) -> None:
    """The real pipeline, files and all, on two hours of stereo."""
    # One stem and one layer: what may grow with the clip is not in the network.
    model = random_model(tmp_path, sources=("vocals",), channels=2, depth=1, lstm_layers=0)
    path = tmp_path / "two hours.flac"
    minute = (music(2, 44100 * 60, 44100).T * 32767).astype(np.int16)
    with soundfile.SoundFile(path, "w", 44100, 2, subtype="PCM_16") as file:
        for _ in range(120):
            file.write(minute)
    arguments = ["separate", path, "-o", tmp_path, "--model", model, "--json"]
    watched = subprocess.run(
        [sys.executable, "-P", "-c", _PEAK_MEMORY, *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert watched.returncode == 0, watched.stderr
    result, peak_bytes = json.loads(watched.stdout)
    assert result["frames"] == 2 * 3600 * 44100
    assert peak_bytes < 3e9
