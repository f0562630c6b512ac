"""The real Ardour, headless, and sessions made with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

SUPERCLOCKS_PER_SECOND = 282_240_000
PROGRAMS = ("ardour7-new_session", "ardour7-lua", "ardour7-export")
# Ardour 7.3 aborts now and then on processors with AVX-512 unless this is set.
ENVIRONMENT = {**os.environ, "ARDOUR_FPU_FLAGS": "31"}
_WAIT_FOR_CONNECTIONS = """
for t in s:get_tracks():iter() do
  for tenth = 1, 100 do
    if t:output():nth(0):connected() then break end
    os.execute("sleep 0.1")
  end
end
"""
_LUA_HEAD = "local s = assert(load_session(arg[1], arg[2]))\n"
_LUA_TAIL = '\ns:save_state("") close_session() quit()\n'


class Ardour:
    """Ardour's programs that need neither a display nor a sound card."""

    def run(self, *command: str, timeout_seconds: int) -> str:
        """Run a program; one retry, as an Ardour now and then hangs or crashes at its end."""
        for attempt in (1, 2):
            try:
                done = subprocess.run(
                    command,
                    env=ENVIRONMENT,
                    capture_output=True,
                    text=True,
                    timeout=timeout_seconds,
                    check=True,
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                if attempt == 2:
                    raise AssertionError(f"{command[0]}: {error}\n{error.stderr!r}") from error
            else:
                return done.stdout
        raise AssertionError

    def new_session(self, folder: Path, name: str, sample_rate_hz: int) -> Path:
        """Make an empty session with a master bus; return its file."""
        shutil.rmtree(folder, ignore_errors=True)
        rate = str(sample_rate_hz)
        self.run("ardour7-new_session", "-s", rate, str(folder), name, timeout_seconds=60)
        return folder / f"{name}.ardour"

    def add_tracks(self, session_file: Path, script: str) -> None:
        """Run Lua that makes audio tracks, and wait until Ardour's other thread connected them."""
        self.lua(session_file, script + _WAIT_FOR_CONNECTIONS)

    def lua(self, session_file: Path, script: str, *, save: bool = True) -> str:
        """Run Lua with the session ``s`` loaded, and save it."""
        path = session_file.parent.parent / f"{session_file.stem}.lua"
        path.write_text(_LUA_HEAD + script + (_LUA_TAIL if save else "\nclose_session() quit()"))
        folder, name = str(session_file.parent), session_file.stem
        return self.run("ardour7-lua", str(path), folder, name, timeout_seconds=60)

    def export(self, session_file: Path) -> NDArray[np.float32]:
        """Return what the session's range sounds like, ``(channels, frames)``."""
        out = session_file.parent.parent / f"{session_file.stem}-export.wav"
        folder, name = str(session_file.parent), session_file.stem
        self.run("ardour7-export", "-b", "float", "-o", str(out), folder, name, timeout_seconds=90)
        audio = soundfile.read(out, dtype="float32", always_2d=True)[0].T
        out.unlink()
        return np.ascontiguousarray(audio)


@dataclass
class ClipPlan:
    """A region to put on a track: ``files`` holds one (path, channel) for each channel.

    ``extra_superclocks``, less than a frame, shifts position, start and length off the frames.
    """

    name: str
    files: Sequence[tuple[Path, int]]
    position_frames: int
    start_frames: int
    length_frames: int
    external: bool = False
    extra_superclocks: int = 0
    envelope: Sequence[tuple[int, float]] = ()


class SessionPlan:
    """Regions for the tracks of a closed session, written the way Ardour writes them."""

    def __init__(self, session_file: Path) -> None:
        self._file = session_file
        self._root = ET.parse(session_file).getroot()
        self._rate_hz = int(self._root.get("sample-rate", ""))
        self._next_id = int(self._root.get("id-counter", ""))

    def add(self, track: str, clip: ClipPlan) -> None:
        ids = [self._source(path, channel, clip.external) for path, channel in clip.files]
        start, length, position = (
            self._time(frames, clip.extra_superclocks)
            for frames in (clip.start_frames, clip.length_frames, clip.position_frames)
        )
        playlists = {p.get("name"): p for p in self._root.iterfind("Playlists/Playlist")}
        attributes = {
            "name": clip.name,
            "muted": "0",
            "opaque": "1",
            "whole-file": "0",
            "start": start,
            "length": f"{length}@{position}",
            "sync-position": start,
            "default-fade-in": "0",
            "default-fade-out": "0",
            "fade-in-active": "0",
            "fade-out-active": "0",
            "scale-amplitude": "1",
            "envelope-active": str(int(bool(clip.envelope))),
            "id": self._id(),
            "type": "audio",
            "first-edit": "nothing",
            "channels": str(len(ids)),
            **{f"source-{n}": source for n, source in enumerate(ids)},
            **{f"master-source-{n}": source for n, source in enumerate(ids)},
        }
        region = ET.SubElement(playlists[track], "Region", attributes)
        for tag in ("Envelope", "FadeIn", "FadeOut"):
            ET.SubElement(region, tag, {"default": "yes"})
        if clip.envelope:
            self._write_envelope(region[0], clip.envelope)

    def _write_envelope(self, envelope: ET.Element, points: Sequence[tuple[int, float]]) -> None:
        envelope.attrib.clear()
        line = {
            "automation-id": "envelope",
            "id": self._id(),
            "interpolation-style": "Exponential",
            "time-domain": "AudioTime",
            "state": "Off",
        }
        events = ET.SubElement(ET.SubElement(envelope, "AutomationList", line), "events")
        events.text = "".join(f"{self._time(frame)} {value}\n" for frame, value in points)

    def save(self, end_frames: int) -> None:
        locations = self._root.find("Locations")
        assert locations is not None
        ET.SubElement(
            locations,
            "Location",
            {
                "id": self._id(),
                "name": "session",
                "start": "a0",
                "end": self._time(end_frames),
                "flags": "IsSessionRange",
                "locked": "0",
            },
        )
        self._root.set("id-counter", str(self._next_id))
        ET.ElementTree(self._root).write(self._file, encoding="UTF-8", xml_declaration=True)

    def _source(self, path: Path, channel: int, external: bool) -> str:
        sources = self._root.find("Sources")
        assert sources is not None
        source_id = self._id()
        attributes = {
            "name": path.name,
            "take-id": "",
            "type": "audio",
            "flags": "",
            "id": source_id,
            "channel": str(channel),
            "origin": str(path) if external else "",
            "gain": "1",
        }
        ET.SubElement(sources, "Source", attributes)
        return source_id

    def _time(self, frames: int, extra_superclocks: int = 0) -> str:
        return f"a{frames * SUPERCLOCKS_PER_SECOND // self._rate_hz + extra_superclocks}"

    def _id(self) -> str:
        self._next_id += 1
        return str(self._next_id - 1)
