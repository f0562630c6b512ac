"""Songs on disk as training material.

A data folder holds ``<split>/<song>/{drums,bass,other,vocals}.flac`` and ``song.json``, as
``python -m models.train.songs`` renders it. Songs are kept decoded, as int16, in memory (2.5 GB
an hour); songs that appear while a run is going on are picked up by :meth:`SongLibrary.rescan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

__all__ = [
    "SAMPLE_RATE_HZ",
    "STEMS",
    "Song",
    "SongLibrary",
    "iterate_songs",
    "read_song",
    "song_folders",
]

STEMS = ("drums", "bass", "other", "vocals")
SAMPLE_RATE_HZ = 44100

Int16Array = npt.NDArray[np.int16]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Song:
    """One song's true sources."""

    name: str
    stems: Int16Array  # (stems, channels, frames)

    @property
    def frames(self) -> int:
        """Frames per channel."""
        return int(self.stems.shape[-1])

    def sources(self, start_frame: int = 0, frames: int | None = None) -> FloatArray:
        """Give a part of the sources, (stems, channels, frames), float32, full scale 1.0."""
        stop_frame = None if frames is None else start_frame + frames
        return self.stems[..., start_frame:stop_frame].astype(np.float32) / np.float32(32768)


def read_song(folder: Path) -> Song:
    """Decode a song folder; ``ValueError`` if its files do not fit together."""
    stems = []
    for stem in STEMS:
        path = folder / f"{stem}.flac"
        audio, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
        if rate_hz != SAMPLE_RATE_HZ or audio.shape[1] != 2:
            raise ValueError(f"{path} is not {SAMPLE_RATE_HZ} Hz stereo")
        stems.append(audio.T)
    if len({stem.shape for stem in stems}) != 1:
        raise ValueError(f"the stems of {folder} differ in length")
    return Song(folder.name, np.ascontiguousarray(np.stack(stems)))


def song_folders(data: Path, split: str) -> list[Path]:
    """List a split's finished songs, by name; ``song.json`` is what comes last into a folder."""
    return sorted(path.parent for path in (data / split).glob("*/song.json"))


def iterate_songs(data: Path, split: str) -> Iterator[Song]:
    """Read the songs of a split one by one; ``FileNotFoundError`` if there is none."""
    folders = song_folders(data, split)
    if not folders:
        raise FileNotFoundError(f"no songs in {data / split}; render some first")
    return (read_song(folder) for folder in folders)


class SongLibrary:
    """The songs of a split in memory, at first those that are there, and random parts of them."""

    def __init__(self, data: Path, split: str, limit_songs: int | None = None) -> None:
        self.data, self.split, self.limit_songs = data, split, limit_songs
        self.songs: list[Song] = []
        self.rescan()

    @property
    def seconds(self) -> float:
        """Playing time of all songs."""
        return sum(song.frames for song in self.songs) / SAMPLE_RATE_HZ

    def rescan(self) -> int:
        """Read the songs that have come since; how many. Songs that do not read are left out."""
        known = {song.name for song in self.songs}
        found = []
        for folder in song_folders(self.data, self.split)[: self.limit_songs]:
            if folder.name not in known:
                try:
                    found.append(read_song(folder))
                except (ValueError, OSError, soundfile.LibsndfileError):
                    continue  # still being written, or broken: the next rescan tries again
        # The order must not depend on when a song was found, so that a run can be repeated.
        self.songs = sorted([*self.songs, *found], key=lambda song: song.name)
        return len(found)

    def draw_song(self, rng: np.random.Generator) -> Song:
        """Draw a song, each second of music being equally likely."""
        frames = np.array([song.frames for song in self.songs], dtype=np.float64)
        return self.songs[int(rng.choice(len(self.songs), p=frames / frames.sum()))]

    def draw_segment(self, rng: np.random.Generator, frames: int) -> FloatArray:
        """Draw a part of a song's sources, (stems, channels, frames); zeros follow a short one."""
        song = self.draw_song(rng)
        start_frame = int(rng.integers(0, max(1, song.frames - frames + 1)))
        sources = song.sources(start_frame, frames)
        missing = frames - sources.shape[-1]
        return np.pad(sources, ((0, 0), (0, 0), (0, missing))) if missing else sources
