"""Whether an Ardour has a session open.

Ardour keeps no lock on a session, and what is edited under it is lost when it saves. What can be
seen from outside (Ardour 7.3, measured):

- Ardour holds an open file for each audio source of the session it has loaded, wherever that
  file lies, and none once the session is closed. This needs no session path on its command line.
- It writes ``instant.xml`` into the session's folder when it opens a session.
- After a crash a ``.pending`` file is left, which Ardour offers to recover at the next start.

What cannot be seen: the moment between the click on "Open" and the first source being opened; an
Ardour on another computer, or of another user whose open files this user may not list and whose
command line does not name the session. The session file's hash is therefore checked once more
right before it is replaced, and the backup is always there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

from bridge.errors import SessionFormatError

# "ArdourGUI" and "ardour-7.3.0" are the program, "luasession" its scripting shell, "hardour" the
# one without a display; Mixbus is Harrison's, with the same sessions.
_PROGRAMS = ("ardour", "hardour", "luasession", "mixbus")
# Start times and file times come from different clocks.
_CLOCK_SLACK_SECONDS = 2.0


def check_not_open(session_file: Path, sources: Collection[Path]) -> None:
    """Refuse if an Ardour has the session open, or has crash data to recover for it.

    Parameters
    ----------
    sources
        The session's audio files.

    Raises
    ------
    SessionFormatError
        With the process id.
    """
    for process in _ardours():
        if _has_open(process, session_file, {os.path.realpath(path) for path in sources}):
            raise SessionFormatError(
                f"{session_file}: is open in Ardour (process {process.pid}), which would overwrite "
                "the edit when it saves; close the session there, or use --output"
            )
    pending = session_file.with_suffix(".pending")
    if pending.exists():
        raise SessionFormatError(
            f"{session_file}: Ardour has unsaved changes to recover for it ({pending.name}); "
            "open it in Ardour, save and close it, then run again"
        )


def _ardours() -> Iterator[psutil.Process]:
    own_ids = {os.getpid()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            names = [process.name()]
            with contextlib.suppress(psutil.AccessDenied):
                names.append(Path(process.exe()).name)
            if process.pid not in own_ids and any(n.lower().startswith(_PROGRAMS) for n in names):
                yield process


def _has_open(process: psutil.Process, session_file: Path, sources: Collection[str]) -> bool:
    folder = os.path.realpath(session_file.parent)
    try:
        held = {os.path.realpath(file.path) for file in process.open_files()}
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):
        held = set()
    if any(_is_within(path, folder) for path in held):
        return True
    if any(f"{os.sep}interchange{os.sep}" in path for path in held):
        return False  # it has another session open
    if held & set(sources):  # of this session, or of another one that uses the same files
        return _opened_since(process, session_file)
    return _command_line_names(process, session_file)


def _is_within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _opened_since(process: psutil.Process, session_file: Path) -> bool:
    try:
        opened_seconds = (session_file.parent / "instant.xml").stat().st_mtime
        return opened_seconds >= process.create_time() - _CLOCK_SLACK_SECONDS
    except (psutil.Error, OSError):
        return False


def _command_line_names(process: psutil.Process, session_file: Path) -> bool:
    try:
        arguments = process.cmdline()[1:]
        start = process.cwd()
    except (psutil.Error, OSError):
        return False
    named = {os.path.realpath(Path(start, text)) for text in arguments if text[:1] != "-"}
    return not named.isdisjoint({str(session_file), os.path.realpath(session_file.parent)})
