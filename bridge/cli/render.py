"""``stembridge render``: a session's clip to stem tracks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from bridge import sessions
from bridge.audio.timecode import format_time, parse_range
from bridge.cli.console import ProgressBar, print_json, print_line, print_table, print_warnings
from bridge.cli.separate import (
    chosen_model,
    remember_speed,
    separation_json,
    separation_options,
    stem_names,
)
from bridge.errors import JobError
from bridge.jobs.render import Render, RenderRequest, plan_render, render


def run(options: Namespace) -> None:
    """Run the command."""
    plan = plan_render(_request(options))
    model = chosen_model(options)
    with ProgressBar() as bar:
        result = render(
            plan,
            model,
            separation_options(options),
            progress=bar.update,
            on_stem=lambda stem: bar.note(f"{stem.name}: verified"),
        )
    print_warnings(result.warnings)
    for separation in result.separations:
        remember_speed(model, options, separation)
        print_warnings(separation.warnings)
    if options.json:
        print_json(_json(result, model.name))
    else:
        _report(result, options)


def _request(options: Namespace) -> RenderRequest:
    session = sessions.read(options.session)
    range_frames = None
    if options.range is not None:
        # An open end reaches the last clip's end.
        end_frames = max((clip.end_frames for clip in session.clips), default=0)
        try:
            range_frames = parse_range(options.range, session.sample_rate_hz, end_frames)
        except ValueError as error:
            raise JobError(f"{session.path}: {error}") from error
    output = options.output
    if output is None and not options.in_place:
        folder = session.path.parent
        output = folder.with_name(f"{folder.name}-stems")
    return RenderRequest(
        session=session.path,
        track=options.track,
        region=options.region,
        range_frames=range_frames,
        output=output,
        existing="replace" if options.replace else "refuse",
        stems=stem_names(options.stems),
        residual=options.residual,
    )


def _json(result: Render, model: str) -> dict[str, object]:
    """Return the fields of ``separate --json`` for the first clip, and those of the session."""
    first = result.separations[0]
    clips = [
        {
            "name": part.clip.name,
            "position_frames": part.position_frames,
            **separation_json(separation, model),
        }
        for part, separation in zip(result.parts, result.separations, strict=True)
    ]
    return {
        "input": result.parts[0].clip.sources[0].path,
        **separation_json(first, model),
        "session": result.session.path.absolute(),
        "tracks": list(result.tracks),
        "position_frames": result.parts[0].position_frames,
        "clips": clips,
    }


def _report(result: Render, options: Namespace) -> None:
    rate_hz = result.session.sample_rate_hz
    rows = []
    for part, separation in zip(result.parts, result.separations, strict=True):
        position = format_time(part.position_frames, rate_hz)
        rows += [
            (name, position, _short(file.path, result), f"{file.peak_db:.1f} dBFS")
            for name, file in zip(result.tracks, separation.files, strict=True)
        ]
    print_table(("track", "position", "file", "peak"), rows)
    worst_db = max(separation.null_db for separation in result.separations)
    seconds = sum(separation.seconds for separation in result.separations)
    print_line(f"{seconds:.1f} s; the tracks sum to the clip within {worst_db:.0f} dBFS")
    print_line(f"{result.session.path}: open it in {result.session.daw}; the original is muted")
    if options.in_place:
        print_line(f"to take it back: stembridge session undo '{result.session.path}'")


def _short(path: Path, result: Render) -> str:
    return str(path.relative_to(result.session.path.parent))
