"""Changes to a session's folder that survive a crash at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import SessionFormatError, SessionWriteError

#: What temporary names end with.
TEMPORARY = ".stembridge-tmp"
# An edit takes well under a second.
_LONGEST_WAIT_SECONDS = 20.0


def sha256(data: bytes) -> str:
    """Return the hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def temporary(path: Path) -> Path:
    """Return the name under which ``path`` is written before it is renamed."""
    return path.with_name(f".{path.name}{TEMPORARY}")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step: a crash leaves the old file or the new one.

    Raises
    ------
    SessionWriteError
        The disk is full or the folder cannot be written; the old file is unchanged.
    """
    part = temporary(path)
    with write_errors(path):
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                part.chmod(path.stat().st_mode & 0o7777)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's renames on the disk, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise SessionWriteError(
            f"{path}: cannot be written ({error.strerror}); the session is as it was, "
            "make room or check the folder's permissions and run again"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a session's folder against other runs of ours; a dying process lets go of it.

    Raises
    ------
    SessionFormatError
        Another run holds it.
    """
    # Windows cannot lock a folder; there, two runs are told apart by the session file's hash.
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 (not on Windows)

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise SessionFormatError(
                        f"{folder}: another run is writing to this session; wait for it to end"
                    ) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
