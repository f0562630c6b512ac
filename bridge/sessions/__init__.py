"""DAW sessions: read them, place stems in them as one edit, take that back.

``read``
    a session folder or file as a :class:`Session` of tracks and clips
``reserve``, ``release``
    names for stem files in the session's :func:`audio_folder`
``place``
    stem tracks in, originals muted, one atomic edit
``undo``
    the session file byte for byte as before the last render, its stem files removed
``copy``
    a whole copy of a session, to leave the original alone
``placed``
    what our records say is in a session
``check_editable``
    why an edit would be refused now

Only Ardour is known yet. What a DAW's adapter has to provide is what this module calls:
``ardour`` reads, ``ardour_edit`` edits, ``ardour_running`` tells whether the DAW has it open.
Records, backups and crash safety (``records``, ``files``) know nothing of the DAW.

Errors are :class:`bridge.errors.SessionFormatError` for what the user has to change and
:class:`bridge.errors.SessionWriteError` for a disk that fails.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from bridge.audio.names import safe_file_name
from bridge.errors import SessionFormatError
from bridge.sessions import ardour, ardour_edit, ardour_running
from bridge.sessions.ardour_xml import Document
from bridge.sessions.files import locked, sha256, sync_folder, write_atomically, write_errors
from bridge.sessions.model import (
    Clip,
    MutedRange,
    PlacedStems,
    PlacedTrack,
    Placement,
    Render,
    Session,
    SourceChannel,
    StemClip,
    StemTrack,
    Track,
)
from bridge.sessions.records import FOLDER, Records, backup_of

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
    "audio_folder",
    "check_editable",
    "copy",
    "place",
    "placed",
    "read",
    "release",
    "reserve",
    "undo",
]


def read(path: Path) -> Session:
    """Read a session folder or session file.

    Raises
    ------
    SessionFormatError
        It is no session, several, damaged, or of a version that is not known.
    """
    return ardour.read(path)


def audio_folder(session: Session) -> Path:
    """Return the folder inside the session where stem files go; it may not exist yet."""
    return ardour.audio_folder(session.path)


def reserve(session: Session, names: Sequence[str]) -> tuple[Path, ...]:
    """Return a free path in the audio folder for each name (``Mix – vocals.wav``).

    The names are noted: if this process dies before :func:`place` or :func:`release`, the next
    run removes the files.
    """
    folder = audio_folder(session)
    with locked(session.path.parent):
        records = _recovered(session.path)
        paths: list[Path] = []
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 (a title, which may hold "/")
            path, number = folder / safe_file_name(stem, suffix), 1
            while path in paths or path.exists() or records.is_reserved(path):
                number += 1
                path = folder / safe_file_name(stem, f" {number}{suffix}")
            paths.append(path)
        records.reserve(paths)
    return tuple(paths)


def release(session: Session, paths: Iterable[Path], *, delete: bool) -> None:
    """Give reserved names back, with the files or, after a refused edit, without them.

    Files that the session plays by now are kept in any case.
    """
    with locked(session.path.parent):
        records = Records.load(session.path)
        paths = list(paths)
        if delete:
            records.discard(paths)
        records.release(paths)
        records.save()


def check_editable(session: Session) -> None:
    """Refuse if an edit of ``session`` would be lost, or lose something.

    Raises
    ------
    SessionFormatError
        The DAW has it open or has crash data for it, the file changed since it was read, or it
        may not be written.
    """
    data = ardour.read_bytes(session.path)
    if sha256(data) != session.sha256:
        raise SessionFormatError(
            f"{session.path}: was changed while the stems were made; nothing was edited, run again"
        )
    for path in (session.path, session.path.parent):
        if not os.access(path, os.W_OK):
            raise SessionFormatError(
                f"{path}: may not be written; change its permissions or use --output"
            )
    ardour_running.check_not_open(session.path, _source_paths(session))


def placed(session: Session) -> tuple[Render, ...]:
    """Return the renders whose stems are in this session, oldest first.

    A render that was replaced, or whose tracks were removed in the DAW, is not among them.
    """
    used = _source_paths(session)
    return tuple(
        render
        for render in Records.load(session.path).public()
        if not used.isdisjoint(render.files)
    )


def place(
    session: Session, placement: Placement, *, existing: Literal["refuse", "replace"]
) -> PlacedStems:
    """Insert stem tracks and mute what they stand in for, as one atomic edit with a backup.

    Parameters
    ----------
    existing
        What to do about our earlier stems of the same clips: ``replace`` takes them out. Their
        files stay until the next such replacement, so that this one can be undone.

    Raises
    ------
    SessionFormatError
        As :func:`check_editable`; there are earlier stems and ``existing`` is ``refuse``; the
        placement does not fit the session. The session and the stem files are as they were.
    """
    with locked(session.path.parent):
        records = _recovered(session.path)
        check_editable(session)
        data = ardour.read_bytes(session.path)
        earlier = _earlier_sources(records, placement)
        playing = ardour.playing_sources(Document(session.path, data))
        if earlier & playing and existing == "refuse":
            raise SessionFormatError(
                f"{session.path}: already has stems of this clip; add --replace to put new ones in "
                "their place, or take them out with: stembridge session undo"
            )
        edit = ardour_edit.edit(session, data, placement, earlier)
        after = ardour.parse(session.path, edit.data)
        kept_tracks = {track.id for track in after.tracks}
        gone_tracks = [track for track in session.tracks if track.id not in kept_tracks]
        unused = _source_paths(session) - _source_paths(after)
        replaced = [p for render in records.public() for p in render.files if p in unused]
        files = list(dict.fromkeys(clip.path for track in placement.tracks for clip in track.clips))
        for path in files:
            if not path.is_file():
                raise SessionFormatError(f"{path}: the stem file is missing; run again")
        sync_folder(audio_folder(session))
        record = records.begin(
            data,
            edit.data,
            files=files,
            replaced=replaced,
            tracks=edit.tracks,
            sources=edit.sources,
        )
        try:
            write_atomically(backup_of(session.path), data)
            check_editable(session)
            write_atomically(session.path, edit.data)
        except BaseException:
            if sha256(ardour.read_bytes(session.path)) != record.after:
                records.abandon(record)
            raise
        records.finish(record)
    return PlacedStems(
        group_name=edit.group_name,
        tracks=edit.tracks,
        replaced=tuple(track.name for track in gone_tracks),
        warnings=edit.warnings,
    )


def undo(path: Path, *, later_edits: Literal["refuse", "snapshot"] = "refuse") -> Session:
    """Put a session back byte for byte as it was before the last render into it.

    Parameters
    ----------
    later_edits
        What to do if the session was saved since: ``snapshot`` keeps the present state as a
        snapshot next to it, and the stem files that this uses.

    Raises
    ------
    SessionFormatError
        Nothing was rendered into it, it was saved since, the DAW has it open, or the backup is
        gone.
    """
    file = ardour.find_session_file(path)
    with locked(file.parent):
        records = _recovered(file)
        if not records.renders:
            raise SessionFormatError(f"{file}: has no rendered stems to undo")
        record = records.renders[-1]
        session = ardour.read(file)
        check_editable(session)
        if session.sha256 == record.before:  # someone put the backup back by hand
            records.finish_undo(record)
            return session
        changed = session.sha256 != record.after
        if changed and later_edits == "refuse":
            raise SessionFormatError(
                f"{file}: was saved since the stems were rendered, and undo would lose that; "
                "remove the stem tracks in Ardour, or add --snapshot to keep the present state too"
            )
        data = records.begin_undo(record)
        if changed:
            write_atomically(_free_snapshot(file), ardour.read_bytes(file))
        write_atomically(file, data)
        records.finish_undo(record)
    return ardour.read(file)


def copy(session: Session, destination: Path) -> Session:
    """Copy a session so that the copy opens by itself.

    Audio inside the session is copied, audio elsewhere stays where it is; exports, backups, peak
    files and other snapshots are left out.

    Raises
    ------
    SessionFormatError
        ``destination`` exists and is not an empty folder, or lies inside the session.
    SessionWriteError
        The disk is full or the folder cannot be written; nothing remains.
    """
    source = session.path.parent
    destination = destination.absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise SessionFormatError(f"{destination}: already exists; choose a new folder")
    if destination.resolve().is_relative_to(source):
        raise SessionFormatError(f"{destination}: lies inside the session; choose another folder")
    part = destination.with_name(f".stembridge-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    with write_errors(destination):
        try:
            part.mkdir(parents=True)
            for item in sorted(source.iterdir()):
                if item.is_dir() and item.name in _COPIED_FOLDERS:
                    shutil.copytree(item, part / item.name, ignore_dangling_symlinks=True)
            records = Records.load(session.path)
            if records.path.exists():
                (part / FOLDER).mkdir()
                backups = [records.folder / r.backup for r in records.renders if r.backup]
                for file in (records.path, *backups):
                    shutil.copy2(file, part / FOLDER / file.name)
            data = ardour.read_bytes(session.path)
            if sha256(data) != session.sha256:
                raise SessionFormatError(f"{session.path}: was changed meanwhile; run again")
            write_atomically(part / session.path.name, data)
            if destination.exists():
                destination.rmdir()
            part.rename(destination)
        except shutil.Error as error:
            raise OSError(0, f"{len(error.args[0])} files could not be copied") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return read(destination / session.path.name)


# What a session needs to open and sound the same.
_COPIED_FOLDERS = {"interchange", "sounds", "externals", "plugins", "analysis", "scripts"}


def _recovered(session_file: Path) -> Records:
    """Return the records, after finishing or taking back what a killed run had begun."""
    records = Records.load(session_file)
    data = ardour.read_bytes(session_file)
    records.recover(data, ardour.listed_sources(Document(session_file, data)))
    return records


def _earlier_sources(records: Records, placement: Placement) -> set[str]:
    """Return the ids of sources of earlier stems of the clips that are placed now."""
    clips = {muted.clip_id for muted in placement.mute}
    clips |= {clip.clip_id for track in placement.tracks for clip in track.clips}
    return {
        source
        for record in records.renders
        for source, clip_id in record.sources.items()
        if clip_id in clips
    }


def _source_paths(session: Session) -> set[Path]:
    return {source.path for clip in session.clips for source in clip.sources}


def _free_snapshot(file: Path) -> Path:
    path, number = file.with_stem(f"{file.stem}-before-undo"), 1
    while path.exists():
        number += 1
        path = file.with_stem(f"{file.stem}-before-undo-{number}")
    return path
