"""Rendering a clip of the example session, as a user runs it; the DAW's side is in tests/daw."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from wavinfo import WavInfoReader

from bridge import sessions
from tests.conftest import CommandResult

EXAMPLE = Path(__file__).parents[2] / "examples" / "session"
NAMES = ("drums", "bass", "other", "vocals", "residual")
# The example's clip: see examples/make_session.py.
POSITION_FRAMES, FRAMES = 96_001, 977_003

Command = Callable[..., CommandResult]
Render = Callable[..., dict[str, object]]


@pytest.fixture
def session_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "My Song"
    shutil.copytree(EXAMPLE, folder)
    return folder


@pytest.fixture
def render(stembridge: Command, tiny_model: Path) -> Render:
    def run(session: Path, *more: object) -> dict[str, object]:
        done = stembridge("render", session, "--model", tiny_model, "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a session but our own records."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "stembridge" not in path.relative_to(folder).parts
    }


def session_file(folder: Path) -> Path:
    (path,) = folder.glob("*.ardour")
    return path


def clip_audio(session: sessions.Session) -> NDArray[np.float64]:
    clip = session.track("Mix").clips[0]
    audio, _ = soundfile.read(clip.sources[0].path, dtype="float64", always_2d=True)
    return audio[clip.start_frames : clip.start_frames + clip.length_frames].T


def total(result: dict[str, object]) -> NDArray[np.float64]:
    paths = [stem["path"] for stem in result["stems"]] + [result["residual"]["path"]]
    return sum(soundfile.read(path, dtype="float64", always_2d=True)[0].T for path in paths)


def test_render_into_a_copy(session_folder: Path, render: Render, tmp_path: Path) -> None:
    before = hashes(session_folder)
    result = render(session_folder, "--track", "Mix")
    assert hashes(session_folder) == before
    copy = tmp_path / "My Song-stems"
    assert Path(str(result["session"])).parent == copy

    assert result["position_frames"] == POSITION_FRAMES
    assert (result["sample_rate_hz"], result["frames"]) == (48000, FRAMES)
    assert result["tracks"] == [f"Mix – {name}" for name in NAMES]
    session = sessions.read(copy)
    np.testing.assert_allclose(total(result), clip_audio(session), atol=1e-6)
    names = [track.name for track in session.tracks]
    assert names == ["Mix", *(f"Mix – {name}" for name in NAMES), "Guide"]
    assert session.track("Mix").clips[0].muted
    assert not session.track("Mix").muted
    assert len({session.track(f"Mix – {name}").color for name in NAMES}) == len(NAMES)
    for name in NAMES:
        (clip,) = session.track(f"Mix – {name}").clips
        assert (clip.position_frames, clip.length_frames) == (POSITION_FRAMES, FRAMES)
        assert clip.channels == 2
        assert not clip.muted
        path = clip.sources[0].path
        assert path.parent == sessions.audio_folder(session)
        assert WavInfoReader(str(path)).bext.time_reference == POSITION_FRAMES
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_in_place_and_undo(session_folder: Path, render: Render, stembridge: Command) -> None:
    before = hashes(session_folder)
    result = render(session_folder, "--track", "Mix", "--in-place", "--range", "3:5")
    assert hashes(session_folder) != before
    assert result["position_frames"] == 3 * 48000
    assert result["frames"] == 2 * 48000
    done = stembridge("session", "undo", session_folder)
    assert done.returncode == 0, done.stderr
    after = hashes(session_folder)
    assert after.pop("Stembridge Example.ardour.bak", None)  # Ardour's own habit
    assert after == before


def test_the_accompaniment_gets_a_track(session_folder: Path, render: Render) -> None:
    options = ("--track", "Mix", "--in-place", "--range", "3:5")
    result = render(session_folder, *options, "--stems", "vocals,accompaniment")
    assert result["tracks"] == ["Mix – vocals", "Mix – accompaniment"]
    assert result["residual"] is None
    audio = clip_audio(sessions.read(EXAMPLE))[:, 3 * 48000 - POSITION_FRAMES :][:, : 2 * 48000]
    parts = [soundfile.read(stem["path"], dtype="float64")[0].T for stem in result["stems"]]
    np.testing.assert_allclose(sum(parts), audio, atol=1e-6)
    session = sessions.read(session_folder)
    assert len({session.track(name).color for name in result["tracks"]}) == 2


def test_a_range_leaves_the_rest_of_the_clip_audible(session_folder: Path, render: Render) -> None:
    result = render(session_folder, "--region", "Song.1", "--in-place", "--range", "5..6")
    session = sessions.read(session_folder)
    parts = sorted(session.track("Mix").clips, key=lambda clip: clip.position_frames)
    assert [(clip.position_frames, clip.end_frames, clip.muted) for clip in parts] == [
        (POSITION_FRAMES, 240_000, False),
        (240_000, 288_000, True),
        (288_000, POSITION_FRAMES + FRAMES, False),
    ]
    original = clip_audio(sessions.read(EXAMPLE))
    start = 240_000 - POSITION_FRAMES
    np.testing.assert_allclose(total(result), original[:, start : start + 48_000], atol=1e-6)


def test_a_second_render_refuses_or_replaces(
    session_folder: Path, render: Render, stembridge: Command, tiny_model: Path
) -> None:
    options = ("--track", "Mix", "--in-place", "--range", "3:4")
    first = render(session_folder, *options)
    once = hashes(session_folder)
    done = stembridge("render", session_folder, *options, "--model", tiny_model)
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert hashes(session_folder) == once
    tracks = [track.name for track in sessions.read(session_folder).tracks]
    render(session_folder, *options, "--replace")
    assert [track.name for track in sessions.read(session_folder).tracks] == tracks
    done = stembridge("session", "undo", session_folder)
    assert done.returncode == 0, done.stderr
    restored = hashes(session_folder)
    assert restored[session_file(session_folder).name] == once[session_file(session_folder).name]
    assert all(Path(stem["path"]).exists() for stem in first["stems"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{session}", "--track", "Drums"), "no track named 'Drums'; its audio tracks: 'Mix'"),
        (("{session}", "--region", "Nope"), "no region named 'Nope'"),
        (("{session}", "--track", "Mix", "--range", "0:1"), "has no clip in that range"),
        (("{session}", "--track", "Mix", "--range", "z"), "not a range"),
        (("{session}", "--track", "Mix", "--output", "{session}"), "already exists"),
        (("{tmp}/nothing", "--track", "Mix"), "nothing"),
        (("{tmp}", "--track", "Mix"), "no"),
        (("{session}", "--track", "Mix", "--stems", "flute"), "this model has drums"),
    ],
)
def test_mistakes_are_one_line_and_lose_nothing(
    session_folder: Path,
    tmp_path: Path,
    stembridge: Command,
    tiny_model: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    before = hashes(session_folder)
    filled = [text.format(session=session_folder, tmp=tmp_path) for text in arguments]
    done = stembridge("render", *filled, "--model", tiny_model)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert hashes(session_folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["My Song"]


def test_missing_audio_is_named(
    session_folder: Path, stembridge: Command, tiny_model: Path
) -> None:
    next(session_folder.rglob("Song.flac")).unlink()
    done = stembridge("render", session_folder, "--track", "Mix", "--model", tiny_model)
    assert done.returncode == 2
    assert "Song.flac" in done.stderr.splitlines()[-1]


def test_a_session_saved_meanwhile_is_left_alone_and_the_stems_are_kept(
    session_folder: Path, tiny_model: Path, stembridge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = session_file(session_folder)
    real_place = sessions.place

    def saved_by_somebody(*arguments: object, **options: object) -> object:
        path.write_text(path.read_text() + "\n<!-- saved -->")
        return real_place(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "place", saved_by_somebody)
    options = ("--track", "Mix", "--in-place", "--range", "3:4", "--model", tiny_model)
    done = stembridge("render", session_folder, *options)
    assert done.returncode == 2
    assert "was changed" in done.stderr.splitlines()[-1]
    assert "the stems are kept in" in done.stderr.splitlines()[-1]
    assert path.read_text().endswith("<!-- saved -->")
    assert len(list(sessions.audio_folder(sessions.read(path)).glob("Mix – *.wav"))) == 5


def test_an_interrupt_right_after_the_edit_keeps_what_the_session_plays(
    session_folder: Path, tiny_model: Path, stembridge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_place = sessions.place

    def interrupted(*arguments: object, **options: object) -> object:
        real_place(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(sessions, "place", interrupted)
    options = ("--track", "Mix", "--in-place", "--range", "3:4", "--model", tiny_model)
    assert stembridge("render", session_folder, *options).returncode == 130
    session = sessions.read(session_folder)
    assert len(session.tracks) == 7
    assert all(source.path.exists() for clip in session.clips for source in clip.sources)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["--in-place", "--output"])
def test_a_cancelled_render_leaves_nothing(
    session_folder: Path, tmp_path: Path, tiny_model: Path, where: str, stop: signal.Signals
) -> None:
    before = hashes(session_folder)
    place = [where] if where == "--in-place" else [where, str(tmp_path / "copy")]
    command = [sys.executable, "-P", "-m", "bridge.cli", "render", str(session_folder)]
    command += ["--track", "Mix", "--model", str(tiny_model), "--shifts", "20", *place]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob(".stembridge-*-*.part/**/*.part")) + list(
        session_folder.rglob("*.part")
    ):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "cancelled" in errors.splitlines()[-1]
    assert hashes(session_folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["My Song"]


# Renders in child processes that are killed at random moments; one import of torch serves all.
_KILL_LOOP = """
import os, random, signal, sys, time
from pathlib import Path
from bridge import sessions
from bridge.cli import main
import bridge.cli.render, bridge.separator.network

folder, model, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
command = ["render", str(folder), "--track", "Mix", "--model", model, "--in-place", "--replace",
           "--range", "3:3.4"]

def start():
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os._exit(main(command))
    return child

started = time.monotonic()
_, status = os.waitpid(start(), 0)
assert os.waitstatus_to_exitcode(status) == 0, status
seconds = time.monotonic() - started
draw = random.Random(7)
killed = 0
for attempt in range(count):
    child = start()
    time.sleep(draw.uniform(0, 1.1 * seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    killed += code == -signal.SIGKILL
    assert code in (0, -signal.SIGKILL), code
    session = sessions.read(folder)
    for clip in session.clips:
        for source in clip.sources:
            assert source.path.exists(), (attempt, source)
    names = [track.name for track in session.tracks]
    assert len(names) == 7 and len(set(names)) == 7, (attempt, names)
_, status = os.waitpid(start(), 0)
assert os.waitstatus_to_exitcode(status) == 0, status
print(killed)
"""


def test_a_hundred_kills_do_no_harm(session_folder: Path, tiny_model: Path) -> None:
    audio = {name: h for name, h in hashes(session_folder).items() if name.endswith(".flac")}
    loop = subprocess.run(
        [sys.executable, "-P", "-c", _KILL_LOOP, str(session_folder), str(tiny_model), "100"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loop.returncode == 0, loop.stderr
    assert int(loop.stdout) >= 50
    after = hashes(session_folder)
    assert audio.items() <= after.items()
    # Two generations of stems may lie there (the last can be undone), and nothing half-written.
    assert not [name for name in after if name.endswith((".part", "-tmp"))]
    assert len([name for name in after if name.endswith(".wav")]) <= 10
