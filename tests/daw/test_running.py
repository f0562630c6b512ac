"""A session that a real Ardour has open is not edited; any other one is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import sessions
from bridge.errors import SessionFormatError
from tests.daw.ardour_lab import ENVIRONMENT, Ardour

EXAMPLE = Path(__file__).parents[2] / "examples" / "session"
PATIENCE_SECONDS = 90.0
HOLD = """
assert(load_session({folder!r}, {name!r}))
print("session is loaded")
io.stdout:flush()
io.read()
close_session() quit()
"""
# Start without a sound card and without the first run's questions.
GUI_CONFIG = """<?xml version="1.0" encoding="UTF-8"?>
<Ardour>
  <Config>
    <Option name="hide-dummy-backend" value="0"/>
    <Option name="try-autostart-engine" value="1"/>
  </Config>
  <Extra><AudioMIDISetup><EngineStates>
    <State backend="None (Dummy)" driver="Normal Speed" device="Silence" input-device=""
      output-device="" sample-rate="48000" buffer-size="1024" n-periods="0" input-latency="0"
      output-latency="0" lm-input="" lm-output="" active="1" use-buffered-io="0"
      midi-option="1 in, 1 out, Silence"/>
  </EngineStates></AudioMIDISetup></Extra>
</Ardour>
"""


def example(folder: Path) -> sessions.Session:
    shutil.copytree(EXAMPLE, folder)
    return sessions.read(folder)


def with_outside_audio(folder: Path, audio: Path) -> sessions.Session:
    """The example with its audio outside the session's folder."""
    session = example(folder)
    if not audio.exists():
        shutil.copytree(sessions.audio_folder(session), audio)
    text = session.path.read_text(encoding="utf-8")
    for name in ("Song.flac", "Count-in.flac"):
        (sessions.audio_folder(session) / name).unlink()
        lines = text.split("\n")
        text = "\n".join(
            line.replace('origin=""', f'origin="{audio / name}"')
            if f'name="{name}"' in line
            else line
            for line in lines
        )
    session.path.write_text(text, encoding="utf-8")
    return sessions.read(folder)


@contextlib.contextmanager
def opened(session: sessions.Session) -> Iterator[int]:
    """Hold a session open in Ardour's shell, whose command line does not name it."""
    script = session.path.parent.parent / "hold.lua"
    folder, name = str(session.path.parent), session.path.stem
    script.write_text(HOLD.format(folder=folder, name=name))
    process = subprocess.Popen(
        ["ardour7-lua", str(script)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            assert any("session is loaded" in line for line in process.stdout)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("audio", ["inside", "outside"])
def test_an_open_session_is_refused_and_its_neighbour_is_not(
    ardour: Ardour, tmp_path: Path, audio: str
) -> None:
    """Both sessions may even use the same files."""
    if audio == "inside":
        session, other = example(tmp_path / "one"), example(tmp_path / "two")
    else:
        session = with_outside_audio(tmp_path / "one", tmp_path / "audio")
        other = with_outside_audio(tmp_path / "two", tmp_path / "audio")
    sessions.check_editable(session)
    with opened(session) as process_id:
        with pytest.raises(SessionFormatError, match=f"open in Ardour .process {process_id}"):
            sessions.check_editable(session)
        sessions.check_editable(other)
    sessions.check_editable(session)


def test_a_session_in_the_window_is_refused(ardour: Ardour, tmp_path: Path) -> None:
    if not (shutil.which("Xvfb") and shutil.which("ardour")):
        reason = "Xvfb or ardour is not installed"
        if os.environ.get("STEMBRIDGE_REQUIRE_DAW") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    session, other = example(tmp_path / "one"), example(tmp_path / "two")
    with gui(session, tmp_path):
        deadline = time.monotonic() + PATIENCE_SECONDS
        audio = sessions.audio_folder(session)
        while not any(holds_open(audio)):
            assert time.monotonic() < deadline, "Ardour's window did not open the session"
            time.sleep(0.2)
        with pytest.raises(SessionFormatError, match="open in Ardour"):
            sessions.check_editable(session)
        sessions.check_editable(other)
    sessions.check_editable(session)


def holds_open(folder: Path) -> Iterator[str]:
    """Yield what any process holds open in ``folder``, told by the kernel."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith(str(folder)):
                yield target


@contextlib.contextmanager
def gui(session: sessions.Session, home: Path) -> Iterator[None]:
    """Run Ardour's window on a display of its own."""
    config = home / ".config" / "ardour7"
    config.mkdir(parents=True)
    (config / ".a7").touch()
    (config / "config").write_text(GUI_CONFIG)
    reader, writer = os.pipe()
    display = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    window = None
    try:
        with os.fdopen(reader, encoding="ascii") as numbers:
            number = numbers.readline().strip()
        environment = {
            **ENVIRONMENT,
            "HOME": str(home),
            "DISPLAY": f":{number}",
            "ARDOUR_TRY_AUTOSTART_ENGINE": "1",
        }
        window = subprocess.Popen(
            ["ardour", "-a", "-n", str(session.path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        yield
    finally:
        if window is not None:
            os.killpg(window.pid, signal.SIGKILL)
            window.wait()
        display.terminate()
        display.wait()
