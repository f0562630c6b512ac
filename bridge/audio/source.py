"""A clip, read in blocks from the files of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from bridge.audio.wav import read_riff_facts
from bridge.errors import AudioFileError

BLOCK_FRAMES = 65_536
# +60 dB full scale: louder than any float recording, far below what 1e37 does to a network.
_LARGEST_VALUE = 1000.0
# Decoded float32 bytes per byte of file; music in the tightest lossy codecs stays below 150.
_SUSPICIOUS_EXPANSION = 200
_LARGEST_CHANNELS = 64
_READABLE = "WAV, FLAC, AIFF, Ogg and MP3 can be read"


class SourceChannel(NamedTuple):
    """One channel of an audio file; ``channel`` counts from 0."""

    path: Path
    channel: int


class AudioSource(Protocol):
    """Audio of a known extent that can be read from its start, more than once."""

    sample_rate_hz: int
    channels: int
    frames: int

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield consecutive float32 blocks ``(channels, block_frames)`` from the start."""
        ...


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, once it was held against the file.

    ``time_reference_frames`` is the position on a timeline that a Broadcast WAV gives.
    """

    sample_rate_hz: int
    channels: int
    frames: int
    time_reference_frames: int = 0
    warnings: tuple[str, ...] = ()


def inspect_audio(path: Path) -> AudioInfo:
    """Return rate, channels and frames of an audio file; nothing is decoded.

    Raises
    ------
    AudioFileError
        Missing, not audio, no channels, rate 0, or shorter than its header claims.
    """
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise AudioFileError(f"{path}: {what}; name an audio file")
        riff = read_riff_facts(path)
        info = soundfile.info(str(path))
    except PermissionError as error:
        raise AudioFileError(f"{path}: may not be read; change its permissions") from error
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioFileError(
            f"{path}: not a readable audio file ({reason}); {_READABLE}"
        ) from error
    if not 0 < info.channels <= _LARGEST_CHANNELS or info.samplerate <= 0:
        raise AudioFileError(
            f"{path}: its header claims {info.channels} channels at {info.samplerate} Hz, so it is "
            "damaged; export the audio again"
        )
    warnings = []
    decoded_bytes = info.frames * info.channels * 4
    if riff is not None:
        if riff.claimed_bytes is None:
            warnings.append(
                f"{path}: its header leaves the length open; {info.frames} frames were found in it"
            )
        elif riff.claimed_bytes > riff.present_bytes:
            raise AudioFileError(
                f"{path}: its header claims {riff.claimed_bytes} bytes of audio but only "
                f"{riff.present_bytes} are there; export or copy the file again"
            )
    elif decoded_bytes > _SUSPICIOUS_EXPANSION * path.stat().st_size:
        warnings.append(
            f"{path}: {path.stat().st_size} bytes claim to hold {info.frames} frames; "
            "either silence, or a damaged header"
        )
    time_reference_frames = riff.time_reference_frames if riff else 0
    return AudioInfo(
        info.samplerate, info.channels, info.frames, time_reference_frames, tuple(warnings)
    )


class ClipAudio:
    """Part of one or more audio files as one :class:`AudioSource`.

    A DAW may keep each channel of a clip in a file of its own; here they are one array again.
    Values that are not finite, or beyond +60 dB full scale, are read as 0 and counted in
    ``zeroed_values``: they never reach a model or a stem.

    Parameters
    ----------
    parts
        The clip's channels, in order.
    start_frames
        First frame of the clip in the files.
    frames
        Frame count of the clip; None for all up to the end of the shortest file.
    sample_rate_hz
        Rate to take the files at; None for their own. A DAW plays a file of another rate frame
        by frame at the session's rate, and so does a clip of it.

    Raises
    ------
    AudioFileError
        A file cannot be read or trusted, ends before the clip does, lacks the channel, or the
        files' rates differ.
    """

    def __init__(
        self,
        parts: Sequence[SourceChannel],
        *,
        start_frames: int = 0,
        frames: int | None = None,
        sample_rate_hz: int | None = None,
    ) -> None:
        if not parts or start_frames < 0:
            raise ValueError("a clip has at least one channel and starts at frame 0 or later")
        self._parts = tuple(parts)
        infos = {path: inspect_audio(path) for path in dict.fromkeys(part.path for part in parts)}
        for path, channel in parts:
            if channel >= infos[path].channels:
                raise AudioFileError(
                    f"{path}: has {infos[path].channels} channels, the clip asks for channel "
                    f"{channel + 1}; point the clip at the right file"
                )
        rates = {info.sample_rate_hz for info in infos.values()}
        if sample_rate_hz is None and len(rates) > 1:
            raise AudioFileError(
                f"{parts[0].path}: the clip's files have different sample rates "
                f"({', '.join(f'{rate} Hz' for rate in sorted(rates))}); convert them to one"
            )
        shortest = min(infos, key=lambda path: infos[path].frames)
        available_frames = infos[shortest].frames - start_frames
        self.frames = available_frames if frames is None else frames
        if self.frames <= 0:
            raise AudioFileError(f"{shortest}: the clip holds no audio; choose one with frames")
        if self.frames > available_frames:
            raise AudioFileError(
                f"{shortest}: has {infos[shortest].frames} frames, the clip needs "
                f"{start_frames + self.frames}; restore the whole file"
            )
        self.sample_rate_hz = sample_rate_hz or infos[shortest].sample_rate_hz
        self.channels = len(parts)
        self.start_frames = start_frames
        self.time_reference_frames = infos[parts[0].path].time_reference_frames + start_frames
        self.zeroed_values = 0
        self.warnings = tuple(text for info in infos.values() for text in info.warnings)

    @classmethod
    def from_file(
        cls, path: Path, *, start_frames: int = 0, frames: int | None = None
    ) -> ClipAudio:
        """Return all channels of one file."""
        channels = inspect_audio(path).channels
        parts = [SourceChannel(path, channel) for channel in range(channels)]
        return cls(parts, start_frames=start_frames, frames=frames)

    @property
    def label(self) -> str:
        """The clip's first file, for messages."""
        return str(self._parts[0].path)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield consecutive blocks ``(channels, frames)``, the last one ragged, from the start.

        Raises
        ------
        AudioFileError
            A file ends early or cannot be decoded.
        """
        self.zeroed_values = 0
        files = {path: _OpenFile(path, self.start_frames) for path, _ in self._parts}
        try:
            done_frames = 0
            while done_frames < self.frames:
                block_frames = min(BLOCK_FRAMES, self.frames - done_frames)
                decoded = {path: file.read(block_frames) for path, file in files.items()}
                block = np.stack([decoded[path][channel] for path, channel in self._parts])
                self.zeroed_values += _zero_what_is_no_audio(block)
                yield block
                done_frames += block_frames
        finally:
            for file in files.values():
                file.close()


def _zero_what_is_no_audio(block: NDArray[np.float32]) -> int:
    # One pass in the usual case: NaN and infinity make the comparison false, too.
    if block.size == 0 or np.abs(block).max() <= _LARGEST_VALUE:
        return 0
    bad = ~(np.abs(block) <= _LARGEST_VALUE)
    block[bad] = 0.0
    return int(np.count_nonzero(bad))


class _OpenFile:
    """One file being decoded, with errors that name it."""

    def __init__(self, path: Path, start_frames: int) -> None:
        self._path = path
        try:
            self._file = soundfile.SoundFile(str(path))
            if start_frames:
                self._file.seek(start_frames)
        except soundfile.LibsndfileError as error:
            raise AudioFileError(self._damaged(error.error_string)) from error

    def read(self, frames: int) -> NDArray[np.float32]:
        try:
            block = self._file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioFileError(self._damaged(error.error_string)) from error
        if len(block) < frames:
            raise AudioFileError(self._damaged(f"ends {frames - len(block)} frames early"))
        transposed: NDArray[np.float32] = block.T
        return transposed

    def close(self) -> None:
        self._file.close()

    def _damaged(self, reason: str) -> str:
        reason = reason.rstrip(".")
        return f"{self._path}: damaged ({reason}); export or copy the file again"
