"""Make the example session and its true stems from a song's stems, with the real Ardour 7.

    python examples/make_session.py FOLDER

``FOLDER`` holds ``drums``, ``bass``, ``other`` and ``vocals`` as WAV or FLAC at any rate, 24 s or
more. Written next to this file:

- ``session/``: a session at 48 kHz with the mixture as one clip on the track "Mix", starting at an
  odd frame and trimmed at both ends, and a count-in on the track "Guide";
- ``ATTRIBUTION.md``: copied from ``FOLDER``, if it is there;
- ``true_stems/``: what the clip really is made of, the same frames. The stems are rounded to 16
  bits before they are summed, so their sum is the clip exactly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from bridge.sessions.ardour_xml import Document

NAME = "Stembridge Example"
STEMS = ("drums", "bass", "other", "vocals")
RATE_HZ = 48_000
GAIN = 0.5  # headroom, and one bit less of each value to store
SONG_START_FRAMES = 8 * RATE_HZ
POSITION_FRAMES = 96_001
TRIM_START_FRAMES = 12_345
TRIM_END_FRAMES = 6_789
CLIP_FRAMES = 977_003
SONG_FRAMES = TRIM_START_FRAMES + CLIP_FRAMES + TRIM_END_FRAMES

TRACKS = """
local s = assert(load_session(arg[1], arg[2]))
local order, mode = ARDOUR.PresentationInfo.max_order, ARDOUR.TrackMode.Normal
local function track(name, inputs, color)
  local made = s:new_audio_track(inputs, 2, nil, 1, name, order, mode, true)
  made:front():presentation_info_ptr():set_color(color)
  for tenth = 1, 100 do -- another thread connects it to the master bus
    if made:front():output():nth(0):connected() then break end
    os.execute("sleep 0.1")
  end
end
track("Mix", 2, 0x6f7fd0ff)
track("Guide", 1, 0x8d939cff)
s:save_state("")
close_session()
quit()
"""
SAVE = 'assert(load_session(arg[1], arg[2])):save_state("") close_session() quit()'


def main() -> None:
    """Make both folders, and check in Ardour that the session plays the mixture."""
    folder = Path(sys.argv[1])
    stems = read_stems(folder)
    examples = Path(__file__).resolve().parent
    if (folder / "ATTRIBUTION.md").exists():
        shutil.copy2(folder / "ATTRIBUTION.md", examples)
    clip = slice(TRIM_START_FRAMES, TRIM_START_FRAMES + CLIP_FRAMES)
    true_stems = examples / "true_stems"
    true_stems.mkdir(exist_ok=True)
    for name, stem in stems.items():
        write_flac(true_stems / f"{name}.flac", stem[clip])
    mixture = sum(stems.values(), start=np.zeros((SONG_FRAMES, 2), np.int32))
    with tempfile.TemporaryDirectory() as work:
        file = make_session(Path(work) / "session", mixture)
        check_export(file, mixture[clip])
        session = examples / "session"
        shutil.rmtree(session, ignore_errors=True)
        session.mkdir()
        shutil.copy2(file, session)
        shutil.copytree(file.parent / "interchange", session / "interchange")
    shutil.rmtree(session / "interchange" / "session" / "midifiles", ignore_errors=True)


def read_stems(folder: Path) -> dict[str, NDArray[np.int32]]:
    """Return each stem's 16-bit values ``(frames, 2)`` at the session's rate."""
    stems = {}
    for name in STEMS:
        path = next(path for path in folder.glob(f"{name}.*") if path.suffix in (".wav", ".flac"))
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        audio = soxr.resample(audio, rate_hz, RATE_HZ, "VHQ")
        audio = audio[SONG_START_FRAMES : SONG_START_FRAMES + SONG_FRAMES]
        stems[name] = np.rint(audio * GAIN * 32_768).astype(np.int32)
    return stems


def write_flac(path: Path, values: NDArray[np.int32]) -> None:
    """Write 16-bit values ``(frames, channels)``."""
    assert np.abs(values).max() < 32_768
    values = values.astype(np.int16)
    soundfile.write(path, values, RATE_HZ, subtype="PCM_16", format="FLAC", compression_level=1.0)


def make_session(folder: Path, mixture: NDArray[np.int32]) -> Path:
    """Make the session with Ardour and return its file."""
    run("ardour7-new_session", "-s", str(RATE_HZ), str(folder), NAME)
    run_lua(folder, TRACKS)
    audio = folder / "interchange" / "session" / "audiofiles"
    write_flac(audio / "Song.flac", mixture)
    write_flac(audio / "Count-in.flac", count_in())
    file = folder / f"{NAME}.ardour"
    document = Document(file, file.read_bytes())
    add_region(document, "Mix", "Song.flac", POSITION_FRAMES, TRIM_START_FRAMES, CLIP_FRAMES)
    add_region(document, "Guide", "Count-in.flac", 0, 0, len(count_in()))
    end_frames = POSITION_FRAMES + CLIP_FRAMES + RATE_HZ
    location = {
        "id": document.new_id(),
        "name": "session",
        "start": "a0",
        "end": document.audio_time(end_frames),
        "flags": "IsSessionRange",
        "locked": "0",
    }
    document.insert(document.section("Locations"), 0, ET.Element("Location", location))
    file.write_bytes(document.serialize())
    run_lua(folder, SAVE)
    return file


def count_in() -> NDArray[np.int32]:
    """Return four ticks, one every half second, ``(frames, 1)``."""
    time = np.arange(RATE_HZ // 2) / RATE_HZ
    tick = np.exp(-time * 90) * np.sin(2 * np.pi * 1_500 * time)
    values: NDArray[np.int32] = np.rint(np.tile(tick, 4)[:, np.newaxis] * 3_000).astype(np.int32)
    return values


def add_region(
    document: Document, track: str, file_name: str, position: int, start: int, frames: int
) -> None:
    """Put part of a file in the session's audio folder on a track."""
    route = document.section("Routes").find(f"Route[@name='{track}']")
    assert route is not None
    channels = len(route.findall("IO[@direction='Input']/Port"))
    attributes = {
        "name": f"{Path(file_name).stem}.1",
        "muted": "0",
        "opaque": "1",
        "start": document.audio_time(start),
        "length": f"{document.audio_time(frames)}@{document.audio_time(position)}",
        "sync-position": document.audio_time(start),
        "fade-in-active": "0",
        "fade-out-active": "0",
        "id": document.new_id(),
        "type": "audio",
        "channels": str(channels),
    }
    sources = document.section("Sources")
    for channel in range(channels):
        source = {
            "name": file_name,
            "type": "audio",
            "flags": "",
            "id": document.new_id(),
            "channel": str(channel),
            "origin": "",
            "gain": "1",
        }
        document.insert(sources, len(sources), ET.Element("Source", source))
        attributes[f"source-{channel}"] = attributes[f"master-source-{channel}"] = source["id"]
    region = ET.Element("Region", attributes)
    for tag in ("Envelope", "FadeIn", "FadeOut"):
        ET.SubElement(region, tag, {"default": "yes"})
    playlist = document.section("Playlists").find(f"Playlist[@name='{track}']")
    assert playlist is not None
    document.insert(playlist, 0, region, depth=2)


def check_export(file: Path, clip: NDArray[np.int32]) -> None:
    """Compare what Ardour plays with the clip."""
    out = file.parent.parent / "export.wav"
    run("ardour7-export", "-b", "float", "-o", str(out), str(file.parent), NAME)
    played = soundfile.read(out, dtype="float32")[0]
    played = played[POSITION_FRAMES : POSITION_FRAMES + CLIP_FRAMES]
    assert np.array_equal(played, clip / np.float32(32_768))


def run_lua(folder: Path, script: str) -> None:
    """Run a script in Ardour's shell."""
    path = folder.parent / "script.lua"
    path.write_text(script)
    run("ardour7-lua", str(path), str(folder), NAME)


def run(*command: str) -> None:
    """Run one of Ardour's programs."""
    # Ardour 7.3 aborts now and then on processors with AVX-512 unless this is set.
    environment = {**os.environ, "ARDOUR_FPU_FLAGS": "31"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
