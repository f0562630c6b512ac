"""What was rendered into a session, kept in its folder: for undo, replacing, and after a crash.

``stembridge/`` in the session's folder holds one ``NAME.json`` for each session file and the
backups it names. The order of writing makes every crash harmless:

===========================  ==================================================================
a render                     an undo
===========================  ==================================================================
reserve names (note them)
write the stem files
keep the backup
note the render: *placing*   note the render: *undoing*
replace the session file     replace the session file by the backup
note the render: *placed*    remove its stem files
remove what it replaced      forget the render, remove its backup
===========================  ==================================================================

Whether the session file was replaced can be seen in itself, so :meth:`Records.recover` finishes
or takes back whatever a killed run had begun. A stem file is only ever removed when no session
file in the folder mentions it: snapshots keep what they use.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

import psutil

from bridge.errors import SessionFormatError
from bridge.sessions.files import (
    TEMPORARY,
    sha256,
    temporary,
    write_atomically,
    write_errors,
)
from bridge.sessions.model import PlacedTrack, Render

FOLDER = "stembridge"
_FORMAT = 1
_PLACING, _PLACED, _UNDOING = "placing", "placed", "undoing"
_AUDIO_SUFFIXES = {".wav", ".flac"}


@dataclass(frozen=True)
class Record:
    """One render. File names are relative to the session's folder.

    Attributes
    ----------
    state
        How far it got: see the table above.
    before, after
        Hashes of the session file.
    backup
        File name of the session before it; empty when that can no longer be had.
    files
        Stem files it added.
    replaced
        Stem files of earlier renders that it took out of the session; they stay until the next
        render that replaces something, so that this one can be undone.
    sources
        The DAW's ids of its sources, each with the id of the clip it was separated from.
    """

    id: str
    state: str
    before: str
    after: str
    backup: str
    files: tuple[str, ...]
    replaced: tuple[str, ...]
    tracks: tuple[tuple[str, str, str], ...]
    sources: dict[str, str]


@dataclass(frozen=True)
class Reservation:
    """Stem files that a job is about to write, and who it is."""

    process_id: int
    started_seconds: float
    files: tuple[str, ...]


@dataclass
class Records:
    """The records of one session file; the caller holds the folder's lock to change them."""

    session_file: Path
    renders: list[Record] = field(default_factory=list)
    reservations: list[Reservation] = field(default_factory=list)

    @classmethod
    def load(cls, session_file: Path) -> Records:
        """Read the records, none if there are none.

        Raises
        ------
        SessionFormatError
            They are damaged, or name files outside the session's folder.
        """
        path = _path(session_file)
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls(session_file)
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path) from error
        try:
            _check(data["format"] == _FORMAT)
            renders = [_record(item) for item in data["renders"]]
            reservations = [
                Reservation(
                    int(item["process_id"]),
                    float(item["started_seconds"]),
                    _file_names(item["files"]),
                )
                for item in data["reservations"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _damaged(path) from error
        return cls(session_file, renders, reservations)

    @property
    def folder(self) -> Path:
        """Where records and backups lie."""
        return self.session_file.parent / FOLDER

    @property
    def path(self) -> Path:
        """The records' own file."""
        return _path(self.session_file)

    def save(self) -> None:
        """Write the records; with nothing to keep, remove them and their folder."""
        with write_errors(self.path):
            if not self.renders and not self.reservations:
                self.path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # another snapshot's records are in there
                    self.folder.rmdir()
                return
            self.folder.mkdir(exist_ok=True)
        content = {
            "format": _FORMAT,
            "renders": [asdict(record) for record in self.renders],
            "reservations": [asdict(reservation) for reservation in self.reservations],
        }
        write_atomically(self.path, json.dumps(content, indent=1).encode())

    def public(self) -> tuple[Render, ...]:
        """Return the renders as the rest of the bridge sees them."""
        return tuple(
            Render(
                id=record.id,
                tracks=tuple(PlacedTrack(*track) for track in record.tracks),
                clip_ids=tuple(dict.fromkeys(record.sources.values())),
                files=tuple(self._absolute(record.files)),
                undoable=bool(record.backup),
            )
            for record in self.renders
            if record.state != _PLACING
        )

    # Reservations

    def reserve(self, paths: Sequence[Path]) -> None:
        """Note files that this process is about to write, so that a crash leaves none behind."""
        process = psutil.Process()
        self.reservations.append(
            Reservation(process.pid, process.create_time(), self._relative(paths))
        )
        self.save()

    def is_reserved(self, path: Path) -> bool:
        """Tell whether a job has this name."""
        name = self._relative([path])[0]
        return any(name in reservation.files for reservation in self.reservations)

    def release(self, paths: Iterable[Path]) -> None:
        """Forget that files were to be written; the files stay."""
        gone = set(self._relative(list(paths)))
        kept = []
        for reservation in self.reservations:
            files = tuple(name for name in reservation.files if name not in gone)
            if files:
                kept.append(replace(reservation, files=files))
        self.reservations = kept

    def discard(self, paths: Iterable[Path]) -> None:
        """Remove stem files, but none that a session file in the folder mentions."""
        self._remove_files(self._relative(list(paths)))

    # A render's life

    def begin(
        self,
        data: bytes,
        edited: bytes,
        *,
        files: Sequence[Path],
        replaced: Sequence[Path],
        tracks: Sequence[PlacedTrack],
        sources: dict[str, str],
    ) -> Record:
        """Keep the backup and note the render; the session file is still the old one."""
        render_id = sha256(edited)[:12]
        backup = f"{self.session_file.stem}-{render_id}.before"
        with write_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        write_atomically(self.folder / backup, data)
        record = Record(
            id=render_id,
            state=_PLACING,
            before=sha256(data),
            after=sha256(edited),
            backup=backup,
            files=self._relative(files),
            replaced=self._relative(replaced),
            tracks=tuple((track.id, track.name, track.stem) for track in tracks),
            sources=sources,
        )
        self.renders.append(record)
        self.save()
        return record

    def finish(self, record: Record) -> None:
        """Note that the session file is the new one, and drop what that makes useless."""
        self._set(record, replace(record, state=_PLACED))
        self.release(self._absolute(record.files))
        self._forget_replaced(record)
        self.save()

    def abandon(self, record: Record) -> None:
        """Forget a render whose session file was not replaced; its stem files stay reserved."""
        self.renders.remove(record)
        self._remove_backup(record)
        self.save()

    def begin_undo(self, record: Record) -> bytes:
        """Note that ``record`` is being undone and return the session file from before it."""
        try:
            data = (self.folder / record.backup).read_bytes() if record.backup else b""
        except OSError:
            data = b""
        if sha256(data) != record.before:
            raise SessionFormatError(
                f"{self.session_file}: the backup for this undo is no longer there; "
                "remove the stem tracks in the DAW instead"
            )
        self._set(record, replace(record, state=_UNDOING))
        self.save()
        return data

    def finish_undo(self, record: Record) -> None:
        """Remove what the undone render had added."""
        self._remove_files(record.files)
        self.renders = [known for known in self.renders if known.id != record.id]
        self._remove_backup(record)
        self.save()

    def recover(self, data: bytes, source_ids: set[str]) -> None:
        """Finish or take back what a killed run had begun.

        Parameters
        ----------
        data, source_ids
            The session file as it is, and the ids of the sources in it.
        """
        now = sha256(data)
        for record in list(self.renders):
            if record.state == _PLACING:
                if now == record.after or source_ids & set(record.sources):
                    self.finish(record)
                else:
                    self._remove_files(record.files)
                    self.release(self._absolute(record.files))
                    self.abandon(record)
            elif record.state == _UNDOING:
                if now == record.before:
                    self.finish_undo(record)
                else:
                    self._set(record, replace(record, state=_PLACED))
                    self.save()
        dead = [r for r in self.reservations if not _is_alive(r)]
        for reservation in dead:
            self._remove_files(reservation.files)
            self.reservations.remove(reservation)
        self._sweep()
        if dead or self.folder.is_dir():
            self.save()

    def _forget_replaced(self, record: Record) -> None:
        """Drop the audio of states that can no longer be reached by undo."""
        if not record.replaced:
            return
        for index, earlier in enumerate(self.renders):
            if earlier.id == record.id:
                break
            if earlier.replaced:
                self._remove_files(earlier.replaced)
                for older in self.renders[: index + 1]:
                    self._remove_backup(older)
                    self._set(older, replace(older, backup="", replaced=()))

    def _set(self, old: Record, new: Record) -> None:
        self.renders = [new if known.id == old.id else known for known in self.renders]

    def _remove_backup(self, record: Record) -> None:
        if record.backup:
            with contextlib.suppress(OSError):
                (self.folder / record.backup).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove temporary files of killed runs, and backups that they had not noted yet."""
        stray = [temporary(path) for path in (self.session_file, backup_of(self.session_file))]
        known = {record.backup for record in self.renders}
        stem = re.escape(self.session_file.stem)
        backup = re.compile(rf"{stem}-[0-9a-f]{{12}}\.before")
        unfinished = re.compile(rf"\.{stem}(\.json|-[0-9a-f]{{12}}\.before){TEMPORARY}")
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            unknown = backup.fullmatch(path.name) and path.name not in known
            if unknown or unfinished.fullmatch(path.name):
                stray.append(path)
        for path in stray:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _remove_files(self, names: Iterable[str]) -> None:
        for path in self._absolute(names):
            if path.suffix in _AUDIO_SUFFIXES and not _is_mentioned(path, self.session_file):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _relative(self, paths: Sequence[Path]) -> tuple[str, ...]:
        return tuple(path.relative_to(self.session_file.parent).as_posix() for path in paths)

    def _absolute(self, names: Iterable[str]) -> list[Path]:
        return [self.session_file.parent / name for name in names]


def backup_of(session_file: Path) -> Path:
    """Return the name under which Ardour keeps the state before the last save."""
    return session_file.with_name(session_file.name + ".bak")


def _path(session_file: Path) -> Path:
    return session_file.parent / FOLDER / f"{session_file.stem}.json"


def _damaged(path: Path) -> SessionFormatError:
    return SessionFormatError(
        f"{path}: the records of rendered stems are damaged; move this file away to go on "
        "without undo"
    )


def _check(plausible: bool) -> None:
    if not plausible:
        raise ValueError


def _record(item: Any) -> Record:
    state = str(item["state"])
    backup = str(item["backup"])
    _check(state in (_PLACING, _PLACED, _UNDOING))
    _check(PurePosixPath(backup).name == backup and "\\" not in backup)
    return Record(
        id=str(item["id"]),
        state=state,
        before=str(item["before"]),
        after=str(item["after"]),
        backup=backup,
        files=_file_names(item["files"]),
        replaced=_file_names(item["replaced"]),
        tracks=tuple((str(a), str(b), str(c)) for a, b, c in item["tracks"]),
        sources={str(source): str(clip) for source, clip in item["sources"].items()},
    )


def _file_names(items: Any) -> tuple[str, ...]:
    """Return file names, all inside the session's folder: a session may come from a stranger."""
    names = tuple(str(item) for item in items)
    for name in names:
        parts = PurePosixPath(name).parts
        _check(bool(parts) and parts[0] != "/" and ".." not in parts)
        _check("\\" not in name and ":" not in parts[0])
    return names


def _is_alive(reservation: Reservation) -> bool:
    try:
        started_seconds = psutil.Process(reservation.process_id).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    return abs(started_seconds - reservation.started_seconds) < 1.0


def _is_mentioned(path: Path, session_file: Path) -> bool:
    """Tell whether a session file next to ``session_file``, or itself, holds the file's name."""
    names = {path.name.encode(), escape(path.name, {'"': "&quot;"}).encode()}
    for snapshot in session_file.parent.glob(f"*{session_file.suffix}"):
        try:
            data = snapshot.read_bytes()
        except OSError:
            return True
        if any(name in data for name in names):
            return True
    return False
