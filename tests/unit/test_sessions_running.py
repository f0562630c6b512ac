"""Which processes count as a DAW that has the session open.

The processes are real, their names are not: any program under the name of Ardour's. What the real
Ardour shows is tested in ``tests/daw``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import sessions
from bridge.errors import SessionFormatError
from tests.unit.session_workshop import edited, example_session

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs cat and /proc")


@pytest.fixture
def session(tmp_path: Path) -> sessions.Session:
    return sessions.read(example_session(tmp_path / "Song"))


@contextlib.contextmanager
def running(
    tmp_path: Path, program: str, *arguments: object, holds: Path | None = None
) -> Iterator[None]:
    """Run ``cat`` as ``program``: it waits for its input and never opens its other arguments."""
    executable = tmp_path / program
    shutil.copy(shutil.which("cat") or "/bin/cat", executable)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context((holds or Path(os.devnull)).open("rb"))
        command = [str(executable), "-", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[held.fileno()],
        )
        try:
            held.close()
            yield
        finally:
            process.kill()
            process.communicate()


def is_refused(session: sessions.Session) -> bool:
    try:
        sessions.check_editable(session)
    except SessionFormatError as error:
        assert "is open in Ardour" in str(error)
        assert "\n" not in str(error)
        return True
    return False


def audio_of(session: sessions.Session) -> Path:
    return session.track("Mix").clips[0].sources[0].path


@pytest.mark.parametrize("program", ["ardour-7.3.0~ds0", "ArdourGUI", "luasession", "mixbus9"])
def test_a_daw_that_holds_audio_of_the_session(
    session: sessions.Session, tmp_path: Path, program: str
) -> None:
    with running(tmp_path, program, holds=audio_of(session)):
        assert is_refused(session)
    assert not is_refused(session)


def test_other_programs_may_hold_what_they_like(session: sessions.Session, tmp_path: Path) -> None:
    with running(tmp_path, "player", session.path, holds=audio_of(session)):
        assert not is_refused(session)


def test_a_daw_that_is_still_loading_is_known_by_its_command_line(
    session: sessions.Session, tmp_path: Path
) -> None:
    for path in (session.path, session.path.parent, os.path.relpath(session.path)):
        with running(tmp_path, "ardour-8", path):
            assert is_refused(session)


def test_a_daw_with_another_session_is_no_obstacle(
    session: sessions.Session, tmp_path: Path
) -> None:
    """Even if it was started with this one and has moved on."""
    other = sessions.read(example_session(tmp_path / "Song 2"))
    with running(tmp_path, "ardour-8", session.path, holds=audio_of(other)):
        assert not is_refused(session)
        assert is_refused(other)


def test_audio_outside_the_session_tells_together_with_its_folder(
    session: sessions.Session, tmp_path: Path
) -> None:
    """Two sessions may use one file; only the one that was opened since has an instant.xml."""
    audio = tmp_path / "mix.wav"
    audio.touch()
    edited(session.path, ('channel="0" origin=""', f'channel="0" origin="{audio}"'))
    session = sessions.read(session.path)
    instant = session.path.parent / "instant.xml"
    instant.touch()
    os.utime(instant, (1, 1))
    with running(tmp_path, "ardour-8", holds=audio):
        assert not is_refused(session)
        instant.touch()
        assert is_refused(session)
