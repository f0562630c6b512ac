"""``kill -9`` at every step of a render and of an undo: the session is the old or the new one.

A child process does the work and dies, without any cleaning up, just before the n-th call that
changes the disk; n counts up until a child comes through alive.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge import sessions
from bridge.errors import SessionFormatError
from tests.unit.session_workshop import example_session, files_in, placement

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    # The child only ever runs Python code of this project and dies.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

CHANGES = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "remove")
MOST_STEPS = 200


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return example_session(tmp_path / "Song")


def dies_before(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that is killed before its ``step``-th change; tell if it was."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0, "the work itself failed"
        return False
    code = 1
    try:
        count_down(step)
        work()
        code = 0
    finally:
        os._exit(code)


def count_down(step: int) -> None:
    """Let this process die before the ``step``-th change to the disk."""
    left = step

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    for name in CHANGES:
        setattr(os, name, mortal(getattr(os, name)))


def render(file: Path, existing: str = "refuse") -> None:
    session = sessions.read(file)
    wanted = placement(session)
    sessions.place(session, wanted, existing=existing)  # type: ignore[arg-type]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def undo_everything(file: Path) -> int:
    """Undo until there is nothing left to undo; return how often."""
    for count in range(5):
        try:
            sessions.undo(file)
        except SessionFormatError as error:
            assert "no rendered stems" in str(error)
            return count
    raise AssertionError("undo has no end")


def stray_files(file: Path, files: set[str]) -> set[str]:
    return files_in(file.parent) - files


@pytest.mark.parametrize("afterwards", ["undo", "render again"])
def test_a_killed_render_leaves_the_old_session_or_the_new_one(file: Path, afterwards: str) -> None:
    files, before = files_in(file.parent), digest(file)
    outcomes = []
    for step in range(1, MOST_STEPS):
        killed = dies_before(step, lambda: render(file))
        placed = digest(file) != before
        if placed:
            names = [track.name for track in sessions.read(file).tracks]
            assert names == ["Mix", "Mix – vocals", "Mix – residual", "Guide"]
            for track in sessions.read(file).tracks:
                assert all(s.path.is_file() for clip in track.clips for s in clip.sources)
        if afterwards == "render again":
            render(file, existing="replace" if placed else "refuse")
            assert len(sessions.read(file).tracks) == 4
        undone = undo_everything(file)
        assert undone == placed + (afterwards == "render again")
        assert digest(file) == before
        assert stray_files(file, files) == set()
        outcomes.append(placed)
        if not killed:
            break
    assert not killed
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) > 10, "there are more steps than that"
    assert outcomes == sorted(outcomes), "once edited, it stays edited"


def test_a_killed_undo_leaves_the_new_session_or_the_old_one(file: Path) -> None:
    files, before = files_in(file.parent), digest(file)
    outcomes = []
    for step in range(1, MOST_STEPS):
        render(file)
        placed = digest(file)
        killed = dies_before(step, lambda: sessions.undo(file))
        undone = digest(file) == before
        assert undone or digest(file) == placed
        assert undo_everything(file) == (not undone)
        assert digest(file) == before
        assert stray_files(file, files) == set()
        outcomes.append(undone)
        if not killed:
            break
    assert not killed
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) > 5


def test_a_killed_replacement_loses_neither_state(file: Path) -> None:
    files, before = files_in(file.parent), digest(file)
    outcomes = set()
    for step in range(1, MOST_STEPS):
        render(file)
        first = digest(file)
        killed = dies_before(step, lambda: render(file, existing="replace"))
        replaced = digest(file) != first
        if replaced:
            sessions.undo(file)
            assert digest(file) == first
        stem = sessions.read(file).track("Mix – vocals").clips[0]
        assert stem.sources[0].path.is_file()
        assert undo_everything(file) == 1
        assert digest(file) == before
        assert stray_files(file, files) == set()
        outcomes.add(replaced)
        if not killed:
            break
    assert not killed
    assert outcomes == {False, True}


def test_files_are_replaced_and_never_written_into(file: Path, tmp_path: Path) -> None:
    """Half a write cannot be seen between two calls; so the old file itself must stay whole."""
    before = file.read_bytes()
    first = tmp_path / "first"
    os.link(file, first)
    render(file)
    assert first.read_bytes() == before
    placed = file.read_bytes()
    second = tmp_path / "second"
    os.link(file, second)
    sessions.undo(file)
    assert second.read_bytes() == placed


def test_stems_of_a_killed_job_are_removed_by_the_next_run(file: Path) -> None:
    """A job that dies before it places its stems leaves no audio behind."""
    files = files_in(file.parent)

    def die_while_rendering() -> None:
        placement(sessions.read(file))
        os.kill(os.getpid(), signal.SIGKILL)

    assert dies_before(MOST_STEPS, die_while_rendering)
    assert any(name.endswith(".wav") for name in stray_files(file, files))
    undo_everything(file)
    assert stray_files(file, files) == set()


def test_stems_of_a_living_job_are_left_alone(file: Path) -> None:
    """Undo in one window must not take the stems that a job in another is writing."""
    render(file)
    session = sessions.read(file)
    paths = sessions.reserve(session, ["Guide – vocals.wav"])
    paths[0].write_bytes(b"being written")
    sessions.undo(file)
    assert paths[0].is_file()
    sessions.release(session, paths, delete=True)
    assert not paths[0].exists()
