"""Render a session's clip: its stems as new tracks where the clip is, the clip itself muted.

Everything that can be refused is refused before the long work; the session is edited last, in one
atomic step. A copy of a session is made under a hidden name and gets its own when it is done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil

from bridge import sessions
from bridge.audio.names import safe_file_name
from bridge.audio.source import ClipAudio
from bridge.errors import BridgeError, JobError, SessionFormatError, SessionWriteError
from bridge.jobs.separate import (
    Delivery,
    Progress,
    Separation,
    StemFile,
    delivered_names,
    separate_clip,
)
from bridge.separator import SeparationOptions, StemModel
from bridge.sessions import Clip, MutedRange, Placement, Session, StemClip, StemTrack, Track

GROUP_COLOR = "#6f7fd0"
_COLORS = {
    "vocals": "#e4606d",
    "drums": "#f0a33e",
    "bass": "#4f8fe6",
    "other": "#5fb878",
    "guitar": "#b07cd8",
    "piano": "#3fb6b2",
    "residual": "#8d939c",
    "accompaniment": "#7fa6a0",
}
_OTHER_COLOR = "#c0a878"


@dataclass(frozen=True)
class RenderRequest:
    """What to render, and where to.

    Parameters
    ----------
    session
        Session file or folder.
    track, region
        Name of the track whose clips to separate, or of the one clip; exactly one of them.
    range_frames
        Start and end on the timeline to keep to; None for the whole clips.
    output
        New folder for a copy of the session to work on; None to work on the session itself.
    existing
        What to do where stems of these clips are in the session already.
    stems, residual
        As for :class:`bridge.jobs.separate.Delivery`.
    """

    session: Path
    track: str | None = None
    region: str | None = None
    range_frames: tuple[int, int] | None = None
    output: Path | None = None
    existing: Literal["refuse", "replace"] = "refuse"
    stems: Sequence[str] | None = None
    residual: bool = True


@dataclass(frozen=True)
class Part:
    """The stretch of one clip that is rendered; ``offset_frames`` counts from its first frame."""

    clip: Clip
    offset_frames: int
    frames: int

    @property
    def position_frames(self) -> int:
        """Where the stretch starts on the timeline."""
        return self.clip.position_frames + self.offset_frames


@dataclass(frozen=True)
class RenderPlan:
    """A request that was held against the session: what exactly will be done."""

    request: RenderRequest
    session: Session
    track: Track
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Render:
    """The outcome of a render.

    ``separations`` are those of the clips in order; paths lie in the session that was edited.
    """

    session: Session
    tracks: tuple[str, ...]
    parts: tuple[Part, ...]
    separations: tuple[Separation, ...]
    warnings: tuple[str, ...] = field(default=())


def plan_render(request: RenderRequest) -> RenderPlan:
    """Hold a request against the session and find its clips.

    Raises
    ------
    BridgeError
        Nothing fits the request, the audio is missing or damaged, the output exists, or the
        session must not be edited now.
    """
    session = sessions.read(request.session)
    if request.output is None:
        sessions.check_editable(session)
    elif request.output.exists() and (request.output.is_file() or any(request.output.iterdir())):
        raise SessionFormatError(f"{request.output}: already exists; choose a new folder")
    track, clips = _find_clips(request, session)
    parts = tuple(_parts(clips, request.range_frames))
    if not parts:
        where = " in that range" if request.range_frames else ""
        raise JobError(f"{session.path}: track '{track.name}' has no clip{where}; choose another")
    if request.existing == "refuse":
        taken = {clip_id for earlier in sessions.placed(session) for clip_id in earlier.clip_ids}
        if any(part.clip.id in taken for part in parts):
            raise SessionFormatError(
                f"{session.path}: already has stems of this clip; add --replace to put new ones "
                "in their place, or take them out with: stembridge session undo"
            )
    for part in parts:
        _audio(session, part)  # refuses what cannot be read
    return RenderPlan(request, session, track, parts)


def render(
    plan: RenderPlan,
    model: StemModel,
    options: SeparationOptions,
    *,
    progress: Progress | None = None,
    on_stem: Callable[[StemFile], None] | None = None,
) -> Render:
    """Separate the plan's clips and place their stems, all or nothing.

    Parameters
    ----------
    plan
        From :func:`plan_render`.
    model, options
        What separates, and how.
    progress, on_stem
        As for :func:`bridge.jobs.separate.separate_clip`.

    Raises
    ------
    BridgeError
        As :func:`plan_render` and :func:`~bridge.jobs.separate.separate_clip`. The session is as
        it was. Stems that only the edit itself was refused for are kept, and the message says
        where.
    """
    with _workplace(plan) as session:
        separations, tracks = _separate_parts(plan, session, model, options, progress, on_stem)
        placement = Placement(
            group_name=f"{plan.track.name} – stems",
            source_track_id=plan.track.id,
            tracks=tracks,
            mute=tuple(MutedRange(p.clip.id, p.offset_frames, p.frames) for p in plan.parts),
            group_color=GROUP_COLOR,
        )
        files = [clip.path for track in tracks for clip in track.clips]
        try:
            placed = sessions.place(session, placement, existing=plan.request.existing)
        except BridgeError as error:
            if plan.request.output is None:
                sessions.release(session, files, delete=False)
                error.args = (f"{error}; the stems are kept in {files[0].parent}",)
            raise
        except BaseException:
            sessions.release(session, files, delete=True)
            raise
    result = Render(
        session=session,
        tracks=tuple(track.name for track in placed.tracks),
        parts=plan.parts,
        separations=separations,
        warnings=placed.warnings,
    )
    return _moved(result, plan.request.output)


def _find_clips(request: RenderRequest, session: Session) -> tuple[Track, Sequence[Clip]]:
    if request.track is not None:
        track = session.track(request.track)
        return track, track.clips
    if request.region is None:
        raise ValueError("a request names a track or a region")
    clips = session.clips_named(request.region)
    return session.track_of(clips[0].id), clips


def _parts(clips: Sequence[Clip], range_frames: tuple[int, int] | None) -> Iterator[Part]:
    for clip in clips:
        start, end = range_frames or (clip.position_frames, clip.end_frames)
        start, end = max(start, clip.position_frames), min(end, clip.end_frames)
        if start < end:
            yield Part(clip, start - clip.position_frames, end - start)


def _audio(session: Session, part: Part) -> ClipAudio:
    if part.clip.problem:
        raise SessionFormatError(f"{session.path}: clip '{part.clip.name}' {part.clip.problem}")
    return ClipAudio(
        part.clip.sources,
        start_frames=part.clip.start_frames + part.offset_frames,
        frames=part.frames,
        sample_rate_hz=session.sample_rate_hz,
    )


@contextlib.contextmanager
def _workplace(plan: RenderPlan) -> Iterator[Session]:
    """Provide the session to edit: itself, or a copy that gets its name when all went well."""
    output = plan.request.output
    if output is None:
        yield plan.session
        return
    _remove_stale_copies(output)
    hidden = output.absolute().with_name(f".stembridge-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield sessions.copy(plan.session, hidden)
        try:
            if output.exists():
                output.rmdir()  # an empty folder, or this fails and nothing is lost
            hidden.rename(output)
        except OSError as error:
            raise SessionWriteError(
                f"{output}: cannot be written ({error.strerror}); choose another folder"
            ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_stale_copies(output: Path) -> None:
    """Remove what killed runs left beside ``output``."""
    for folder in output.absolute().parent.glob(".stembridge-*-*.part"):
        process_id = folder.name.split("-")[1]
        if folder.is_dir() and process_id.isdecimal() and not psutil.pid_exists(int(process_id)):
            shutil.rmtree(folder, ignore_errors=True)


def _separate_parts(
    plan: RenderPlan,
    session: Session,
    model: StemModel,
    options: SeparationOptions,
    progress: Progress | None,
    on_stem: Callable[[StemFile], None] | None,
) -> tuple[tuple[Separation, ...], tuple[StemTrack, ...]]:
    """Separate every part into the session's audio folder; nothing remains if one fails."""
    names = delivered_names(plan.request.stems, model, residual=plan.request.residual).all
    titles = {name: f"{plan.track.name} – {name}" for name in names}
    separations: list[Separation] = []
    clips: dict[str, list[StemClip]] = {name: [] for name in names}
    reserved: list[Path] = []
    try:
        for number, part in enumerate(plan.parts):
            paths = dict(
                zip(
                    names,
                    sessions.reserve(
                        session,
                        [safe_file_name(plan.track.name, f" – {name}.wav") for name in names],
                    ),
                    strict=True,
                )
            )
            reserved += paths.values()
            separation = separate_clip(
                _audio(plan.session, part),
                model,
                options,
                Delivery(
                    path_of=paths.__getitem__,
                    stems=plan.request.stems,
                    residual=plan.request.residual,
                    time_reference_frames=part.position_frames,
                ),
                progress=_numbered(progress, number, len(plan.parts)),
                on_stem=on_stem,
            )
            separations.append(separation)
            for name, file in zip(names, separation.files, strict=True):
                clips[name].append(
                    StemClip(
                        clip_id=part.clip.id,
                        offset_frames=part.offset_frames,
                        length_frames=part.frames,
                        path=file.path,
                        channels=part.clip.channels,
                    )
                )
    except BaseException:
        sessions.release(session, reserved, delete=True)
        raise
    tracks = tuple(
        StemTrack(titles[name], name, _COLORS.get(name, _OTHER_COLOR), tuple(clips[name]))
        for name in names
    )
    return tuple(separations), tracks


def _numbered(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Tell the phases of several clips apart."""
    if progress is None or count == 1:
        return progress
    return lambda phase, done, total: progress(f"{phase} {number + 1}/{count}", done, total)


def _moved(result: Render, output: Path | None) -> Render:
    """Return the result with the paths that it has since its session got its name."""
    if output is None:
        return result
    hidden, final = result.session.path.parent, output.absolute()

    def moved(path: Path) -> Path:
        return final / path.relative_to(hidden)

    def moved_file(file: StemFile) -> StemFile:
        return replace(file, path=moved(file.path))

    return replace(
        result,
        session=replace(result.session, path=moved(result.session.path)),
        separations=tuple(
            replace(
                separation,
                stems=tuple(map(moved_file, separation.stems)),
                residual=separation.residual and moved_file(separation.residual),
            )
            for separation in result.separations
        ),
    )
