"""Files that appear under their name only when they are whole and verified."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil
import soundfile
from numpy.typing import NDArray

from bridge.audio.source import inspect_audio
from bridge.audio.wav import BroadcastInfo, WavFormat, broadcast_wav_header
from bridge.errors import AudioFileError, AudioWriteError

_PART = re.compile(r"\.stembridge-(\d+)-[0-9a-f]{8}\.part")
_FULL_SCALE_24 = 1 << 23
_FLAC_CHANNELS = 8
_FLAC_HIGHEST_HZ = 655_350


class StemFormat(StrEnum):
    """How stems are stored."""

    WAV_FLOAT32 = "wav-float32"
    WAV_INT24 = "wav-int24"
    FLAC = "flac"

    @property
    def suffix(self) -> str:
        """File name suffix, with its dot."""
        return ".flac" if self is StemFormat.FLAC else ".wav"

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one value; for FLAC what it takes at worst."""
        return 4 if self is StemFormat.WAV_FLOAT32 else 3


class StemWriter:
    """Write one audio file of a known frame count, all or nothing.

    The audio goes to a temporary name in the destination's folder; :meth:`finish` flushes it to
    the disk, opens it again, compares rate, channels and frames, and only then renames it. Left
    as a context manager without :meth:`finish`, nothing remains.

    Parameters
    ----------
    path
        Final name; a file of that name is replaced in one step.
    sample_rate_hz, channels, frames
        What will have been written in the end.
    stem_format
        Storage; the integer ones clip beyond full scale and count it in ``clipped_values``.
    info
        Broadcast WAV fields; FLAC has no place for them.

    Raises
    ------
    AudioWriteError
        The folder cannot be written, the disk is full, or the file did not come back whole.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample_rate_hz: int,
        channels: int,
        frames: int,
        stem_format: StemFormat = StemFormat.WAV_FLOAT32,
        info: BroadcastInfo | None = None,
    ) -> None:
        self.path = path
        self.clipped_values = 0
        self.peak = 0.0
        self._format = stem_format
        self._expected = (sample_rate_hz, channels, frames)
        self._written_frames = 0
        self._part = path.parent / f".stembridge-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
        self._encoder: _WavEncoder | _FlacEncoder
        try:
            with _write_errors(path):
                if stem_format is StemFormat.FLAC:
                    self._encoder = _FlacEncoder(self._part, sample_rate_hz, channels)
                else:
                    layout = WavFormat(sample_rate_hz, channels, stem_format.bytes_per_value * 8)
                    header = broadcast_wav_header(layout, frames, info or BroadcastInfo())
                    self._encoder = _WavEncoder(self._part, header)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    def write(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append ``block`` ``(channels, frames)`` and return it as the file will give it back.

        Float storage returns the block itself, the integer ones its rounded and clipped values,
        so that a residual can make up for what rounding took.
        """
        stored = block
        with _write_errors(self.path):
            if self._format is StemFormat.WAV_FLOAT32:
                self._encoder.write(block)
            else:
                integers = self._quantize(block)
                self._encoder.write(integers)
                stored = (integers / np.float32(_FULL_SCALE_24)).astype(np.float32)
        self._written_frames += block.shape[1]
        if stored.size:
            self.peak = max(self.peak, float(np.abs(stored).max()))
        return stored

    def _quantize(self, block: NDArray[np.float32]) -> NDArray[np.int32]:
        scaled = np.rint(block.astype(np.float64) * _FULL_SCALE_24)
        limited = np.clip(scaled, -_FULL_SCALE_24, _FULL_SCALE_24 - 1)
        self.clipped_values += int(np.count_nonzero(np.abs(scaled - limited) > 1))
        return limited.astype(np.int32)

    def finish(self) -> Path:
        """Verify the file, put it under its final name, and return that."""
        frames = self._expected[2]
        if self._written_frames != frames:
            raise ValueError(f"{self._written_frames} of {frames} frames were written")
        with _write_errors(self.path):
            self._encoder.close()
            found = inspect_audio(self._part)
            if (found.sample_rate_hz, found.channels, found.frames) != self._expected:
                raise AudioWriteError(
                    f"{self.path}: came back from the disk with {found.frames} frames instead "
                    f"of {frames}; check the disk and run again"
                )
            self._part.replace(self.path)
        return self.path

    def abort(self) -> None:
        """Remove what was written; harmless after :meth:`finish`."""
        # On a full disk, closing may fail once more.
        with contextlib.suppress(OSError, soundfile.LibsndfileError):
            self._encoder.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


class _WavEncoder:
    """Header first, then interleaved little-endian float32 or 24-bit values."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._file = path.open("xb")
        self._file.write(header)

    def write(self, block: NDArray[np.float32] | NDArray[np.int32]) -> None:
        # Channel by channel: many times faster than what numpy does with a transposed copy.
        values = np.empty(block.shape[::-1], block.dtype)
        for channel, audio in enumerate(block):
            values[:, channel] = audio
        if values.dtype == np.float32:
            self._file.write(values.astype("<f4", copy=False).data)
        else:  # the low three of four bytes
            low_bytes = values.astype("<i4", copy=False).view(np.uint8).reshape(-1, 4)[:, :3]
            self._file.write(low_bytes.tobytes())

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            if self._file.tell() % 2:  # RIFF chunks end on even bytes
                self._file.write(b"\0")
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class _FlacEncoder:
    """24-bit FLAC by libsndfile."""

    def __init__(self, path: Path, sample_rate_hz: int, channels: int) -> None:
        if channels > _FLAC_CHANNELS or sample_rate_hz > _FLAC_HIGHEST_HZ:
            raise AudioFileError(
                f"FLAC holds at most {_FLAC_CHANNELS} channels and {_FLAC_HIGHEST_HZ} Hz, this "
                f"clip has {channels} and {sample_rate_hz}; choose --format wav-float32"
            )
        self._path = path
        self._file = soundfile.SoundFile(
            str(path), "x", sample_rate_hz, channels, subtype="PCM_24", format="FLAC"
        )

    def write(self, block: NDArray[np.float32] | NDArray[np.int32]) -> None:
        # libsndfile takes int32 as full scale and keeps the upper 24 bits.
        self._file.write(np.left_shift(block.T.astype(np.int32), 8))

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioWriteError(
            f"{path}: {_reason(error)}; nothing was kept under that name"
        ) from error


def _reason(error: OSError | soundfile.LibsndfileError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC:
        return "the disk is full; free some space and run again"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder may not be written; choose another with --output"
    if number == errno.ENAMETOOLONG:
        return "the name is too long for this disk; choose a shorter folder"
    if isinstance(error, OSError):
        return f"cannot be written ({error.strerror})"
    return f"cannot be written ({error.error_string.rstrip('.')})"


def prepare_folder(folder: Path, needed_bytes: int) -> None:
    """Make ``folder``, remove what killed runs left in it, and check that there is room.

    Raises
    ------
    AudioWriteError
        It cannot be made, or the disk holds less than ``needed_bytes``.
    """
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".stembridge-*.part"):
            match = _PART.fullmatch(part.name)
            if match and not psutil.pid_exists(int(match[1])):
                part.unlink(missing_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise AudioWriteError(
            f"{folder}: the stems need {needed_bytes / 1e9:.1f} GB, the disk has "
            f"{free_bytes / 1e9:.1f} GB left; free some space or choose another folder"
        )
