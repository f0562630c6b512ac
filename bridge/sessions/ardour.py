"""Ardour sessions: find the file, read it into the neutral model, know its folders.

A session is a folder. It holds one ``.ardour`` file for each snapshot, and one folder under
``interchange`` with the audio that belongs to the session. Neither of them need have the name of
the session's folder: people rename folders. A source is either a file in there (``origin`` empty,
``name`` its file name) or any other file (``origin`` its absolute path).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from bridge.errors import SessionFormatError
from bridge.sessions.ardour_regions import extent
from bridge.sessions.ardour_xml import Document, color_text
from bridge.sessions.model import Clip, Session, SourceChannel, Track

SUFFIX = ".ardour"
_BACKUPS = (".bak", ".tmp", ".pending", ".history", ".template", "~")
_LARGEST_CHANNELS = 64


def find_session_file(path: Path) -> Path:
    """Return the session file of a folder, or the file itself.

    Raises
    ------
    SessionFormatError
        There is none, there are several, or the file is one of Ardour's backups.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise SessionFormatError(
            f"{path}: cannot be read ({error.strerror}); check the folder and its permissions"
        ) from error
    if not exists:
        raise SessionFormatError(f"{path}: does not exist; name a session folder or .ardour file")
    if not path.is_dir():
        if path.suffix != SUFFIX or not path.is_file():
            backup = f"{path.name}".endswith(_BACKUPS)
            what = "is a backup or template" if backup else "is not a session"
            raise SessionFormatError(f"{path}: {what}; name a session folder or .ardour file")
        return path.resolve()
    found = sorted(file for file in path.iterdir() if file.suffix == SUFFIX and file.is_file())
    named = [file for file in found if file.stem == path.resolve().name]
    if len(found) == 1 or named:
        return (named or found)[0].resolve()
    if not found:
        raise SessionFormatError(f"{path}: holds no .ardour file; name an Ardour session")
    names = ", ".join(file.name for file in found)
    raise SessionFormatError(f"{path}: holds several sessions; name one of {names}")


def read_bytes(path: Path) -> bytes:
    """Return a session file's bytes; a :class:`SessionFormatError` says why not."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SessionFormatError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error


def read(path: Path) -> Session:
    """Read a session folder or ``.ardour`` file."""
    file = find_session_file(path)
    return parse(file, read_bytes(file))


def parse(path: Path, data: bytes) -> Session:
    """Return the session that ``data``, the bytes of ``path``, describes."""
    document = Document(path, data)
    sources = _sources(document, search_folders(document))
    tracks = [
        _track(document, route, playlist, sources) for route, playlist in audio_tracks(document)
    ]
    return Session(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        name=printable(document.root.get("name") or path.stem),
        daw="Ardour",
        version=document.version,
        sample_rate_hz=document.sample_rate_hz,
        tracks=tuple(tracks),
    )


def audio_tracks(document: Document) -> Iterator[tuple[ET.Element, ET.Element]]:
    """Yield each audio track's route and playlist, as they stand in the DAW from top down."""
    playlists = {element.get("id"): element for element in document.section("Playlists")}
    routes = [
        route
        for route in document.section("Routes")
        if isinstance(route.tag, str) and route.get("audio-playlist") is not None
    ]
    for route in sorted(routes, key=lambda element: _order(document, element)):
        playlist = playlists.get(route.get("audio-playlist"))
        if playlist is None:
            raise document.error(f"lacks the playlist of track {route.get('name', '')!r}")
        yield route, playlist


def regions(playlist: ET.Element) -> Iterator[ET.Element]:
    """Yield a playlist's regions."""
    return playlist.iterfind("Region")


def source_ids(region: ET.Element) -> tuple[str, ...]:
    """Return the ids of a region's sources, channel by channel."""
    found = []
    for channel in range(_LARGEST_CHANNELS):
        value = region.get(f"source-{channel}")
        if value is None:
            break
        found.append(value)
    return tuple(found)


def listed_sources(document: Document) -> set[str]:
    """Return the ids of all sources that the session lists."""
    return {document.text(source, "id") for source in document.section("Sources").iter("Source")}


def playing_sources(document: Document) -> set[str]:
    """Return the ids of the sources that a region on a track plays."""
    return {
        source
        for _, playlist in audio_tracks(document)
        for region in regions(playlist)
        for source in source_ids(region)
    }


def audio_folder(session_file: Path) -> Path:
    """Return the folder for audio of this session, which may not be there yet.

    Ardour takes the one folder under ``interchange``, whatever its name; failing that, one named
    like the session's folder.

    Raises
    ------
    SessionFormatError
        There are several; Ardour itself refuses such a session.
    """
    root = session_file.parent
    sounds = root / "sounds"  # sessions begun before Ardour 2
    if sounds.is_dir():
        return sounds
    interchange = root / "interchange"
    inside = []
    if interchange.is_dir():
        inside = [p for p in interchange.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if len(inside) > 1:
        raise SessionFormatError(
            f"{interchange}: holds {len(inside)} folders, and Ardour cannot tell which is the "
            "session's; leave only the right one there"
        )
    own = inside[0] if inside else interchange / root.name
    return own / "audiofiles"


def search_folders(document: Document) -> list[Path]:
    """Return where Ardour looks for a source by its name."""
    folders = [audio_folder(document.path)]
    for option in document.root.iterfind("Config/Option"):
        if option.get("name") == "audio-search-path":
            folders += [Path(text) for text in option.get("value", "").split(":") if text]
    return folders


def printable(name: str) -> str:
    """Return a name for messages and lists: on one line, without control characters."""
    return "".join(
        "�" if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or c in _BIDI else c
        for c in name
    )


# Characters that reorder the text around them: names must not be able to forge a line.
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _order(document: Document, route: ET.Element) -> int:
    info = route.find("PresentationInfo")
    return document.integer(info, "order") if info is not None else 0


def _sources(document: Document, folders: list[Path]) -> dict[str, SourceChannel | str]:
    """Return each source's file and channel, or why it has none."""
    found: dict[str, SourceChannel | str] = {}
    for source in document.section("Sources").iterfind("Source"):
        source_id = document.text(source, "id")
        name = source.get("name", "")
        origin = source.get("origin", "")
        if source.get("type") != "audio" or source.get("playlist") is not None:
            found[source_id] = "is a compound clip or no audio; bounce it in Ardour first"
            continue
        channel = document.integer(source, "channel") if source.get("channel") else 0
        if channel >= _LARGEST_CHANNELS:
            raise document.error(f"has a source with channel {channel}")
        if _is_absolute(origin):
            path = Path(origin)
        elif _is_absolute(name):
            path = Path(name)
        elif not name or re.search(r"[/\\\0]", name) or name in (".", ".."):
            raise document.error(f"has a source named {name[:40]!r}")
        else:
            candidates = [folder / name for folder in folders]
            path = next((p for p in candidates if p.is_file()), candidates[0])
        found[source_id] = SourceChannel(path, channel)
    return found


def _is_absolute(text: str) -> bool:
    return Path(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _track(
    document: Document,
    route: ET.Element,
    playlist: ET.Element,
    sources: dict[str, SourceChannel | str],
) -> Track:
    track_id = document.text(route, "id")
    clips = [_clip(document, track_id, region, sources) for region in regions(playlist)]
    clips.sort(key=lambda clip: (clip.position_frames, clip.length_frames))
    info = route.find("PresentationInfo")
    mute = route.find("Controllable[@name='mute']")
    inputs = route.findall("IO[@direction='Input']/Port[@type='audio']")
    return Track(
        id=track_id,
        name=printable(document.text(route, "name")),
        color=color_text(info.get("color") if info is not None else None),
        muted=mute is not None and document.number(mute, "value", 0.0) >= 0.5,
        channels=len(inputs) or max((clip.channels for clip in clips), default=1),
        clips=tuple(clips),
    )


def _clip(
    document: Document,
    track_id: str,
    region: ET.Element,
    sources: dict[str, SourceChannel | str],
) -> Clip:
    name = printable(document.text(region, "name"))
    where = extent(document, region)
    if where.length_frames < 1:
        raise document.error(f"has region {name[:40]!r} without a length")
    channels: list[SourceChannel] = []
    problem = ""
    ids = source_ids(region)
    if not ids:
        problem = "has no audio"
    for source_id in ids:
        source = sources.get(source_id, "lacks its source; relink it in Ardour")
        if isinstance(source, str):
            problem = source
        else:
            channels.append(source)
    return Clip(
        id=document.text(region, "id"),
        name=name,
        track_id=track_id,
        position_frames=where.position_frames,
        start_frames=where.start_frames,
        length_frames=where.length_frames,
        sources=() if problem else tuple(channels),
        muted=region.get("muted") == "1",
        gain=document.number(region, "scale-amplitude", 1.0),
        problem=problem,
    )
