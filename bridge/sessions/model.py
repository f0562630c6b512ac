"""A DAW session as the rest of the bridge sees it, whatever the DAW.

Positions and lengths are frames at the session's sample rate. Nothing here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge.audio.source import SourceChannel
from bridge.errors import SessionFormatError


@dataclass(frozen=True)
class Clip:
    """One region on a track.

    Attributes
    ----------
    id
        The DAW's own identifier; it survives a save by the DAW.
    position_frames
        Where the clip starts on the timeline.
    start_frames
        First frame of the clip in its source files.
    sources
        One channel of an audio file for each channel of the clip; the files may be missing.
    gain
        The clip's own gain, a linear factor; a negative one inverts the polarity.
    problem
        Why the clip cannot be separated ("is a compound clip"); empty if it can.
    """

    id: str
    name: str
    track_id: str
    position_frames: int
    start_frames: int
    length_frames: int
    sources: tuple[SourceChannel, ...]
    muted: bool
    gain: float
    problem: str = ""

    @property
    def end_frames(self) -> int:
        """First frame on the timeline after the clip."""
        return self.position_frames + self.length_frames

    @property
    def channels(self) -> int:
        """Channel count of the clip."""
        return len(self.sources)


@dataclass(frozen=True)
class Track:
    """One audio track; ``channels`` is what it plays, ``color`` is ``#rrggbb`` or None."""

    id: str
    name: str
    color: str | None
    muted: bool
    channels: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Session:
    """One session file, as it was when it was read.

    Attributes
    ----------
    path
        The session file; its folder holds what belongs to the session.
    sha256
        Hash of the file's bytes; an edit is refused when the file has another one by then.
    """

    path: Path
    sha256: str
    name: str
    daw: str
    version: str
    sample_rate_hz: int
    tracks: tuple[Track, ...]

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All clips, track by track."""
        return tuple(clip for track in self.tracks for clip in track.clips)

    def track(self, name: str) -> Track:
        """Return the track called ``name``.

        Raises
        ------
        SessionFormatError
            There is none, or more than one.
        """
        found = [track for track in self.tracks if track.name == name]
        if len(found) == 1:
            return found[0]
        known = ", ".join(repr(track.name) for track in self.tracks) or "none"
        what = f"has {len(found)} tracks" if found else "has no track"
        raise SessionFormatError(f"{self.path}: {what} named {name!r}; its audio tracks: {known}")

    def track_of(self, clip_id: str) -> Track:
        """Return the track that holds a clip of this session."""
        for track in self.tracks:
            if any(clip.id == clip_id for clip in track.clips):
                return track
        raise SessionFormatError(
            f"{self.path}: clip {clip_id} is no longer there; read the session again"
        )

    def clips_named(self, name: str) -> tuple[Clip, ...]:
        """Return the clips called ``name``; a cut leaves several of one name.

        Raises
        ------
        SessionFormatError
            There is none, or they lie on several tracks.
        """
        found = tuple(clip for clip in self.clips if clip.name == name)
        if not found:
            known = ", ".join(dict.fromkeys(repr(clip.name) for clip in self.clips)) or "none"
            raise SessionFormatError(
                f"{self.path}: has no region named {name!r}; its regions: {known}"
            )
        tracks = [track.name for track in self.tracks if any(c in found for c in track.clips)]
        if len(tracks) > 1:
            where = ", ".join(repr(track) for track in tracks)
            raise SessionFormatError(
                f"{self.path}: regions named {name!r} lie on several tracks; name one of {where}"
            )
        return found


@dataclass(frozen=True)
class StemClip:
    """One stem file to put on a track.

    It takes position, gain, fades and gain envelope from the clip that it was separated from.

    Attributes
    ----------
    clip_id
        That clip.
    offset_frames
        Frame of the clip at which the file's first frame lies.
    length_frames
        Frames of the file.
    path
        The file, in the session's :func:`bridge.sessions.audio_folder`.
    channels
        Channels of the file.
    """

    clip_id: str
    offset_frames: int
    length_frames: int
    path: Path
    channels: int


@dataclass(frozen=True)
class StemTrack:
    """A track to add: ``stem`` is the model's name of it, ``color`` is ``#rrggbb``."""

    name: str
    stem: str
    color: str
    clips: tuple[StemClip, ...]


@dataclass(frozen=True)
class MutedRange:
    """Part of a clip that its stems stand in for, counted from the clip's first frame."""

    clip_id: str
    start_frames: int
    length_frames: int


@dataclass(frozen=True)
class Placement:
    """What a job wants inserted next to ``source_track_id``, as one edit."""

    group_name: str
    source_track_id: str
    tracks: tuple[StemTrack, ...]
    mute: tuple[MutedRange, ...]
    group_color: str = "#6f7fd0"


@dataclass(frozen=True)
class PlacedTrack:
    """A stem track in the session; ``id`` is the DAW's, ``name`` the one it got."""

    id: str
    name: str
    stem: str


@dataclass(frozen=True)
class PlacedStems:
    """What :func:`bridge.sessions.place` did.

    Attributes
    ----------
    replaced
        Names of our earlier tracks that were taken out.
    warnings
        One line each on what a listener may notice.
    """

    group_name: str
    tracks: tuple[PlacedTrack, ...]
    replaced: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Render:
    """One render that is in the session, as our records have it; ``clip_ids`` are its originals."""

    id: str
    tracks: tuple[PlacedTrack, ...]
    clip_ids: tuple[str, ...]
    files: tuple[Path, ...]
    undoable: bool


__all__ = [
    "Clip",
    "MutedRange",
    "PlacedStems",
    "PlacedTrack",
    "Placement",
    "Render",
    "Session",
    "SourceChannel",
    "StemClip",
    "StemTrack",
    "Track",
]
