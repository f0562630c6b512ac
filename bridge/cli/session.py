"""``stembridge session show`` and ``stembridge session undo``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import Literal

from bridge import sessions
from bridge.audio.timecode import format_time
from bridge.cli.console import print_json, print_line, print_table


def run(options: Namespace) -> None:
    """Run the command."""
    if options.action == "undo":
        _undo(options)
    else:
        _show(options)


def _undo(options: Namespace) -> None:
    later_edits: Literal["refuse", "snapshot"] = "snapshot" if options.snapshot else "refuse"
    session = sessions.undo(options.session, later_edits=later_edits)
    if options.json:
        print_json({"session": session.path})
    else:
        print_line(f"{session.path} is as it was before the last render")


def _show(options: Namespace) -> None:
    session = sessions.read(options.session)
    if options.json:
        print_json(dataclasses.asdict(session))
        return
    rate_hz = session.sample_rate_hz
    print_line(f"{session.name}: {session.daw} {session.version}, {rate_hz} Hz, {session.path}")
    rows = []
    for track in session.tracks:
        name = track.name + (" (muted)" if track.muted else "")
        for clip in track.clips or [None]:
            if clip is None:
                rows.append((name, "", "", "", ""))
            else:
                rows.append(
                    (
                        name,
                        clip.name + (" (muted)" if clip.muted else ""),
                        f"{format_time(clip.position_frames, rate_hz)} = {clip.position_frames}f",
                        f"{format_time(clip.length_frames, rate_hz)} = {clip.length_frames}f",
                        {1: "mono", 2: "stereo"}.get(clip.channels, str(clip.channels)),
                    )
                )
            name = ""
    print_table(("track", "clip", "position", "length", "channels"), rows)
