"""A real session to work on: the example session, copied, and placements for its clip."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bridge import sessions

EXAMPLE = Path(__file__).parents[2] / "examples" / "session"
STEMS = ("vocals", "residual")
CLIP_FRAMES = 977_003


def example_session(folder: Path) -> Path:
    """Copy the example session into ``folder`` and return its file; its audio is stand-ins."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.flac"))
    for audio in EXAMPLE.rglob("*.flac"):
        (folder / audio.relative_to(EXAMPLE)).write_bytes(b"stand-in")
    return next(folder.glob("*.ardour"))


def edited(file: Path, *replacements: tuple[str, str]) -> Path:
    """Replace text in a session file; each must be found."""
    text = file.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return file


def placement(
    session: sessions.Session,
    *,
    track: str = "Mix",
    start: int = 0,
    frames: int | None = None,
    stems: Sequence[str] = STEMS,
) -> sessions.Placement:
    """Reserve names, write stand-ins for the stem files, and return what to place."""
    original = session.track(track)
    clip = original.clips[0]
    frames = clip.length_frames - start if frames is None else frames
    paths = sessions.reserve(session, [f"{track} – {stem}.wav" for stem in stems])
    for path in paths:
        path.write_bytes(b"stand-in")
    tracks = tuple(
        sessions.StemTrack(
            f"{track} – {stem}",
            stem,
            "#e4606d",
            (sessions.StemClip(clip.id, start, frames, path, clip.channels),),
        )
        for stem, path in zip(stems, paths, strict=True)
    )
    muted = (sessions.MutedRange(clip.id, start, frames),)
    return sessions.Placement(f"{track} – stems", original.id, tracks, muted)


def files_in(folder: Path) -> set[str]:
    """Return all files and folders in a session, but for Ardour's own backup."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.endswith(".bak")}
