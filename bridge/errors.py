"""The exception tree of the bridge.

::

    BridgeError
    ├── AudioFileError         an audio file cannot be read or trusted
    │   └── AudioWriteError    an audio file cannot be written (disk full, read-only folder)
    ├── SessionFormatError     a DAW session cannot be read, or must not be edited
    │   └── SessionWriteError  a DAW session cannot be written
    └── JobError               a job was refused
        └── JobFailed          a job failed on the way

``str(error)`` is one line for a musician: what is wrong, in which file, and what to do.
``exit_code`` tells the command line whose turn it is: 2 where the request or its input has to
change, 1 where something failed on the way. ``ValueError`` is kept for a caller's misuse of an
interface.
"""

from __future__ import annotations

from typing import ClassVar


class BridgeError(Exception):
    """Base of all errors that the bridge raises on purpose."""

    exit_code: ClassVar[int] = 1


class AudioFileError(BridgeError):
    """An audio file cannot be read or trusted."""

    exit_code = 2


class AudioWriteError(AudioFileError):
    """An audio file cannot be written."""

    exit_code = 1


class SessionFormatError(BridgeError):
    """A DAW session cannot be read, or must not be edited."""

    exit_code = 2


class SessionWriteError(SessionFormatError):
    """A DAW session cannot be written."""

    exit_code = 1


class JobError(BridgeError):
    """A job was refused."""

    exit_code = 2


class JobFailed(JobError):
    """A job failed on the way."""

    exit_code = 1
