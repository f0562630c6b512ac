"""Reading and writing audio: exact, whole or not at all, and clear about what is wrong."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from wavinfo import WavInfoReader

from bridge.audio.resample import Resampler
from bridge.audio.source import ClipAudio, SourceChannel, inspect_audio
from bridge.audio.wav import BroadcastInfo, WavFormat, broadcast_wav_header, read_riff_facts
from bridge.audio.writer import StemFormat, StemWriter, prepare_folder
from bridge.errors import AudioFileError, AudioWriteError


def noise(channels: int, frames: int, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((channels, frames)) * 0.2).astype(np.float32)


def read_all(clip: ClipAudio) -> NDArray[np.float32]:
    return np.concatenate(list(clip.blocks()), axis=-1)


def write_wav(path: Path, audio: NDArray[np.float32], rate: int = 48000, **options: str) -> Path:
    soundfile.write(path, audio.T, rate, **({"subtype": "FLOAT"} | options))
    return path


def write_stem(path: Path, audio: NDArray[np.float32], stem_format: StemFormat) -> StemWriter:
    writer = StemWriter(
        path,
        sample_rate_hz=48000,
        channels=audio.shape[0],
        frames=audio.shape[1],
        stem_format=stem_format,
        info=BroadcastInfo(336_001, "vocals stem"),
    )
    with writer:
        for start in range(0, audio.shape[1], 1001):
            writer.write(audio[:, start : start + 1001])
        writer.finish()
    return writer


# Reading


def test_a_clip_is_the_frames_it_names(tmp_path: Path) -> None:
    audio = noise(2, 200_001)
    path = write_wav(tmp_path / "a.wav", audio)
    clip = ClipAudio.from_file(path, start_frames=777, frames=150_003)
    assert (clip.sample_rate_hz, clip.channels, clip.frames) == (48000, 2, 150_003)
    np.testing.assert_array_equal(read_all(clip), audio[:, 777 : 777 + 150_003])
    np.testing.assert_array_equal(read_all(clip), audio[:, 777 : 777 + 150_003])


def test_channels_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    audio = noise(3, 5000)
    left = write_wav(tmp_path / "x%L.wav", audio[:1])
    both = write_wav(tmp_path / "y.wav", audio[1:])
    clip = ClipAudio([SourceChannel(both, 1), SourceChannel(left, 0)])
    np.testing.assert_array_equal(read_all(clip), audio[[2, 0]])


def test_floats_above_full_scale_are_kept(tmp_path: Path) -> None:
    audio = noise(1, 100) * 40
    np.testing.assert_array_equal(
        read_all(ClipAudio.from_file(write_wav(tmp_path / "hot.wav", audio))), audio
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e37, -1e37])
def test_what_is_no_audio_is_zeroed_and_counted(tmp_path: Path, bad: float) -> None:
    audio = noise(2, 1000)
    audio[1, 500] = bad
    clip = ClipAudio.from_file(write_wav(tmp_path / "bad.wav", audio))
    audio[1, 500] = 0
    np.testing.assert_array_equal(read_all(clip), audio)
    assert clip.zeroed_values == 1


@pytest.mark.parametrize(
    ("channels", "rate", "options"),
    [
        (1, 48000, {"subtype": "PCM_16"}),
        (6, 48000, {"subtype": "PCM_24"}),
        (2, 96000, {"subtype": "DOUBLE"}),
        (2, 44100, {"subtype": "PCM_U8"}),
        (2, 22050, {"subtype": "IMA_ADPCM"}),
        (2, 44100, {"format": "FLAC", "subtype": "PCM_16"}),
        (2, 48000, {"format": "OGG", "subtype": "VORBIS"}),
        (2, 44100, {"format": "AIFF", "subtype": "PCM_16"}),
        (2, 44100, {"format": "RF64", "subtype": "FLOAT"}),
    ],
)
def test_kinds_of_files(tmp_path: Path, channels: int, rate: int, options: dict[str, str]) -> None:
    path = write_wav(tmp_path / "any", noise(channels, 30_000), rate, **{"format": "WAV"} | options)
    expected, expected_rate = soundfile.read(path, dtype="float32", always_2d=True)
    clip = ClipAudio.from_file(path)
    assert clip.sample_rate_hz == expected_rate == rate
    assert clip.channels == channels
    np.testing.assert_array_equal(read_all(clip), expected.T)


def damaged_files(folder: Path) -> dict[str, Path]:
    """Every kind of damage that a header check or a decoder can see."""
    audio = noise(2, 50_000)
    whole = write_wav(folder / "whole.wav", audio).read_bytes()
    flac = write_wav(folder / "whole.flac", audio, format="FLAC", subtype="PCM_16").read_bytes()
    data_at = whole.index(b"data")
    flipped = bytearray(flac)
    flipped[len(flac) // 2] ^= 0x10
    contents = {
        "empty.wav": b"",
        "text.wav": b"these are the lyrics of the song\n" * 40,
        "header only.wav": whole[:20],
        "truncated.wav": whole[: len(whole) // 2],
        "truncated.flac": flac[: len(flac) // 2],
        "flipped.flac": bytes(flipped),
        "no channels.wav": whole.replace(struct.pack("<HH", 3, 2), struct.pack("<HH", 3, 0), 1),
        "rate 0.wav": whole.replace(struct.pack("<I", 48000), struct.pack("<I", 0), 1),
        "2^36 frames.wav": broadcast_wav_header(WavFormat(48000, 2, 32), 2**36, BroadcastInfo())
        + bytes(4000),
        "too long.wav": whole[: data_at + 4]
        + struct.pack("<I", 0x7000_0000)
        + whole[data_at + 8 :],
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    paths["missing.wav"] = folder / "missing.wav"
    paths["folder.wav"] = folder / "folder.wav"
    paths["folder.wav"].mkdir()
    return paths


def test_damaged_files_end_in_one_line_that_names_them(tmp_path: Path) -> None:
    for name, path in damaged_files(tmp_path).items():
        with pytest.raises(AudioFileError) as caught:
            for block in ClipAudio.from_file(path).blocks():
                assert block.dtype == np.float32
        line = str(caught.value)
        assert str(path) in line, name
        assert "\n" not in line, name
        assert ";" in line, f"{name}: what to do is missing: {line}"
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_may_not_be_read(tmp_path: Path, what: str, as_user: None) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = write_wav(folder / "a.wav", noise(2, 100))
    (path if what == "file" else folder).chmod(0)
    with pytest.raises(AudioFileError, match="may not be read"):
        inspect_audio(path)
    folder.chmod(0o700)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF])
def test_an_open_length_is_read_with_a_warning(tmp_path: Path, size: int) -> None:
    audio = noise(2, 5000)
    path = write_wav(tmp_path / "streamed.wav", audio)
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + struct.pack("<I", size) + content[at + 4 :])
    info = inspect_audio(path)
    if info.frames:
        assert "leaves the length open" in info.warnings[0]
        np.testing.assert_array_equal(read_all(ClipAudio.from_file(path)), audio)
    else:
        with pytest.raises(AudioFileError):
            ClipAudio.from_file(path)


def test_minutes_in_a_few_bytes_are_warned_about_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "silence.flac"
    with soundfile.SoundFile(path, "w", 44100, 2, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((441_000, 2), np.int16))
    assert path.stat().st_size < 500_000
    assert "silence, or a damaged header" in inspect_audio(path).warnings[0]


def test_clips_that_the_files_do_not_hold_are_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(2, 100))
    other_rate = write_wav(tmp_path / "b.wav", noise(1, 100), 44100)
    with pytest.raises(AudioFileError, match="needs 101"):
        ClipAudio.from_file(path, start_frames=1, frames=100)
    with pytest.raises(AudioFileError, match="holds no audio"):
        ClipAudio.from_file(path, start_frames=100)
    with pytest.raises(AudioFileError, match="channel 3"):
        ClipAudio([SourceChannel(path, 2)])
    with pytest.raises(AudioFileError, match="different sample rates"):
        ClipAudio([SourceChannel(path, 0), SourceChannel(other_rate, 0)])
    assert ClipAudio([SourceChannel(other_rate, 0)], sample_rate_hz=48000).sample_rate_hz == 48000


# Writing


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("frames", [1, 100, 30_001])
def test_float_stems_come_back_bit_for_bit(tmp_path: Path, channels: int, frames: int) -> None:
    audio = noise(channels, frames) * 10
    path = tmp_path / "stem.wav"
    writer = write_stem(path, audio, StemFormat.WAV_FLOAT32)
    stored, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert rate == 48000
    np.testing.assert_array_equal(stored.T, audio)
    assert writer.peak == np.abs(audio).max()


@pytest.mark.parametrize("stem_format", [StemFormat.WAV_INT24, StemFormat.FLAC])
def test_integer_stems_are_what_write_returned(tmp_path: Path, stem_format: StemFormat) -> None:
    audio = noise(2, 30_001)
    audio[0, 7] = 1.5
    path = tmp_path / f"stem{stem_format.suffix}"
    with StemWriter(
        path, sample_rate_hz=44100, channels=2, frames=30_001, stem_format=stem_format
    ) as writer:
        returned = writer.write(audio)
        writer.finish()
    stored, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(stored.T, returned)
    np.testing.assert_allclose(returned, np.minimum(audio, 1), atol=2**-23)
    assert writer.clipped_values == 1


@pytest.mark.parametrize("channels", [1, 2])
def test_the_broadcast_chunk_is_read_by_others(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "stem.wav"
    write_stem(path, noise(channels, 1001), StemFormat.WAV_INT24)
    info = WavInfoReader(str(path))
    assert info.bext.time_reference == 336_001
    assert info.bext.description == "vocals stem"
    assert info.bext.originator == "Stembridge"
    assert info.data.frame_count == 1001
    assert info.fmt.bits_per_sample == 24
    assert ClipAudio.from_file(path, start_frames=9).time_reference_frames == 336_010


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    audio = noise(2, 4000)
    for name in ("a.wav", "b.wav"):
        write_stem(tmp_path / name, audio, StemFormat.WAV_FLOAT32)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_files_beyond_4_gib_are_rf64(tmp_path: Path) -> None:
    frames = 600_000_000
    path = tmp_path / "long.wav"
    header = broadcast_wav_header(WavFormat(48000, 2, 32), frames, BroadcastInfo(5))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + frames * 8)  # a sparse file takes no room
    assert soundfile.info(path).frames == frames
    assert inspect_audio(path).frames == frames
    assert WavInfoReader(str(path)).bext.time_reference == 5
    facts = read_riff_facts(path)
    assert facts is not None
    assert facts.claimed_bytes == facts.present_bytes == frames * 8


def test_nothing_remains_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "stem.wav"
    path.write_bytes(b"what was there before")
    with (
        pytest.raises(KeyboardInterrupt),
        StemWriter(path, sample_rate_hz=48000, channels=2, frames=1000) as writer,
    ):
        writer.write(noise(2, 500))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_the_wrong_length_is_not_finished(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="500 of 1000"),
        StemWriter(tmp_path / "stem.wav", sample_rate_hz=48000, channels=2, frames=1000) as writer,
    ):
        writer.write(noise(2, 500))
        writer.finish()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_eats_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a silent fault: what was flushed does not come back whole."""
    real_fsync = os.fsync

    def lossy_fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 800)

    monkeypatch.setattr(os, "fsync", lossy_fsync)
    with pytest.raises(AudioFileError, match=r"claims|came back"):
        write_stem(tmp_path / "stem.wav", noise(2, 5000), StemFormat.WAV_FLOAT32)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount the small disk that this test fills")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stem_format", list(StemFormat))
def test_a_full_disk_is_one_error_and_leaves_nothing(
    tiny_disk: Path, stem_format: StemFormat
) -> None:
    path = tiny_disk / f"stem{stem_format.suffix}"
    with pytest.raises(AudioWriteError) as caught:
        write_stem(path, noise(2, 200_000), stem_format)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert not list(tiny_disk.iterdir())


def test_too_little_room_is_said_before_the_work(tiny_disk: Path) -> None:
    with pytest.raises(AudioWriteError, match="free some space"):
        prepare_folder(tiny_disk / "stems", 10_000_000)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AudioWriteError, match="file/stems"):
        prepare_folder(tmp_path / "file" / "stems", 0)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = tmp_path / f".stembridge-{ended.pid}-0123abcd.part"
    alive = tmp_path / f".stembridge-{os.getpid()}-0123abcd.part"
    for path in (stale, alive, tmp_path / "mine.part"):
        path.touch()
    prepare_folder(tmp_path, 0)
    assert not stale.exists()
    assert alive.exists()
    assert (tmp_path / "mine.part").exists()


# Sample-rate conversion


@pytest.mark.parametrize(("from_hz", "to_hz"), [(48000, 44100), (44100, 48000), (96000, 44100)])
def test_conversion_keeps_frames_and_positions(from_hz: int, to_hz: int) -> None:
    frames = 2 * from_hz + 123
    time = np.arange(frames) / from_hz
    tone = np.sin(2 * np.pi * 997 * time).astype(np.float32)
    resampler = Resampler(from_hz, to_hz, 1)
    converted = [resampler.push(tone[None, at : at + 1009]) for at in range(0, frames, 1009)]
    out = np.concatenate([*converted, resampler.finish()], axis=-1)[0]
    assert abs(len(out) - frames * to_hz / from_hz) <= 0.5
    expected = np.sin(2 * np.pi * 997 * np.arange(len(out)) / to_hz)
    np.testing.assert_allclose(out[500:-500], expected[500:-500], atol=1e-5)
