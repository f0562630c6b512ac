"""The edit: stem tracks next to the track they came from, and the original muted.

A stem track is a copy of the original's route with new ids, and a stem region a copy of the
original's region with new sources. So whatever shapes the sound of the clip (fader, trim, pan,
polarity, automation, routing, region gain, fades, envelope) shapes that of its stems, and as all
of it is linear, stems and residual add up to what the clip sounded like. Plugins and sends are
not linear in general and are not copied; a warning says so.
"""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count

from bridge.sessions import ardour
from bridge.sessions.ardour_regions import (
    extent,
    part,
    renew_ids,
    set_start,
    whole_file_region,
)
from bridge.sessions.ardour_remove import remove_stems
from bridge.sessions.ardour_xml import Document, color_number
from bridge.sessions.model import (
    MutedRange,
    PlacedTrack,
    Placement,
    Session,
    StemClip,
    StemTrack,
)

# What a stem track takes over from the original; the rest is plugins, sends and inserts, or
# (trigger slots, monitor sends) made anew by Ardour.
_KEPT_PROCESSORS = frozenset(
    ("diskwriter", "diskreader", "polarity", "trim", "amp", "meter", "main-outs")
)
_SILENTLY_DROPPED_PROCESSORS = {"triggerbox", "listen", "monitor", "surround-send"}
# Names of a track's own processors are its name with one of these before it.
_OWN_PREFIXES = ("", "recorder:", "player:", "meter-")
_AUTOMATION_BEING_WRITTEN = ("Write", "Touch", "Latch")


@dataclass(frozen=True)
class Edit:
    """An edited session file and what is new in it; ``sources`` maps source ids to clip ids."""

    data: bytes
    group_name: str
    tracks: tuple[PlacedTrack, ...]
    sources: dict[str, str]
    warnings: tuple[str, ...]


def edit(
    session: Session, data: bytes, placement: Placement, remove_sources: Collection[str]
) -> Edit:
    """Return ``data``, the session's file, with ``placement`` in it.

    Parameters
    ----------
    remove_sources
        Ids of sources of earlier stems to take out, with their regions and the tracks that are
        empty without them.

    Raises
    ------
    SessionFormatError
        A clip is not there, a range reaches outside its clip or cuts through a fade.
    """
    return _Editor(session, data).run(placement, remove_sources)


class _Editor:
    """One edit of one document."""

    def __init__(self, session: Session, data: bytes) -> None:
        self._document = Document(session.path, data)
        self._folder = ardour.audio_folder(session.path)
        self._warnings: list[str] = []
        self._sources: dict[str, str] = {}
        self._originals: dict[str, ET.Element] = {}  # regions as they were before the edit
        self._gains: dict[str, str] = {}
        self._tracks = {
            self._document.text(route, "id"): (route, playlist)
            for route, playlist in ardour.audio_tracks(self._document)
        }

    def run(self, placement: Placement, remove_sources: Collection[str]) -> Edit:
        document = self._document
        if placement.source_track_id not in self._tracks:
            raise document.error(f"lacks track {placement.source_track_id}")
        route, playlist = self._tracks[placement.source_track_id]
        if remove_sources:
            remove_stems(document, remove_sources)
        for region in ardour.regions(playlist):
            self._originals[document.text(region, "id")] = copy.deepcopy(region)
        for source in document.section("Sources").iterfind("Source"):
            self._gains[document.text(source, "id")] = source.get("gain", "1")
        self._warn_about(route, playlist, placement)
        for muted in placement.mute:
            self._mute(playlist, muted)
        placed = self._insert_tracks(route, playlist, placement.tracks)
        group_name = self._insert_group(placement, placed)
        return Edit(
            data=document.serialize(),
            group_name=group_name,
            tracks=tuple(placed),
            sources=self._sources,
            warnings=tuple(self._warnings),
        )

    # The original

    def _original(self, clip_id: str) -> ET.Element:
        if clip_id not in self._originals:
            raise self._document.error(f"lacks region {clip_id} on the track to be separated")
        return self._originals[clip_id]

    def _mute(self, playlist: ET.Element, muted: MutedRange) -> None:
        """Mute part of a region; what lies before and after it becomes regions of their own."""
        original = self._original(muted.clip_id)
        whole = extent(self._document, original).length_frames
        end = muted.start_frames + muted.length_frames
        live = next(r for r in ardour.regions(playlist) if r.get("id") == muted.clip_id)
        index = list(playlist).index(live)
        names = self._part_names(original.get("name", ""))
        middle = part(self._document, original, muted.start_frames, muted.length_frames)
        middle.set("id", muted.clip_id)  # it is still the user's region, only shorter
        middle.set("muted", "1")
        self._document.remove(playlist, live)
        self._document.insert(playlist, index, middle, depth=2)
        for offset, frames in ((0, muted.start_frames), (end, whole - end)):
            if frames:
                rest = part(self._document, original, offset, frames)
                rest.set("name", next(names))
                self._document.insert(playlist, len(playlist), rest, depth=2)

    def _part_names(self, name: str) -> Iterator[str]:
        taken = {region.get("name") for region in self._document.root.iter("Region")}
        base, dot, number = name.rpartition(".")
        stem, first = (base, int(number)) if dot and number.isdecimal() else (name, 0)
        for index in count(first + 1):
            if f"{stem}.{index}" not in taken:
                yield f"{stem}.{index}"

    def _warn_about(self, route: ET.Element, playlist: ET.Element, placement: Placement) -> None:
        name = ardour.printable(route.get("name", ""))
        effects = [
            ardour.printable(processor.get("name", "?"))
            for processor in route.iterfind("Processor")
            if processor.get("type") not in _KEPT_PROCESSORS | _SILENTLY_DROPPED_PROCESSORS
            and processor.get("active") == "1"
        ]
        if effects:
            self._warnings.append(
                f"track {name!r} has plugins or sends ({', '.join(effects)}); "
                "its stem tracks are without them"
            )
        mute = route.find("Controllable[@name='mute']")
        if mute is not None and self._document.number(mute, "value", 0.0) >= 0.5:
            self._warnings.append(f"track {name!r} is muted, and so are its stem tracks")
        sharing = [
            other.get("name", "")
            for other, _ in self._tracks.values()
            if other is not route and other.get("audio-playlist") == playlist.get("id")
        ]
        if sharing:
            others = ", ".join(repr(ardour.printable(other)) for other in sharing)
            self._warnings.append(
                f"track {name!r} shares its playlist with {others}, muted there, too"
            )
        self._warn_about_regions(playlist, placement)

    def _warn_about_regions(self, playlist: ET.Element, placement: Placement) -> None:
        muted_ids = {muted.clip_id for muted in placement.mute}
        for muted in placement.mute:
            original = self._original(muted.clip_id)
            name = ardour.printable(original.get("name", ""))
            start = extent(self._document, original).position_frames + muted.start_frames
            end = start + muted.length_frames
            if original.find("RegionFXPlugin") is not None:
                self._warnings.append(f"region {name!r} has plugins; its stems are without them")
            for other in ardour.regions(playlist):
                where = extent(self._document, other)
                if (
                    other.get("id") not in muted_ids
                    and other.get("muted") != "1"
                    and where.position_frames < end
                    and where.position_frames + where.length_frames > start
                ):
                    self._warnings.append(
                        f"region {ardour.printable(other.get('name', ''))!r} overlaps {name!r} "
                        "and may be heard differently next to its stems; separate both"
                    )

    # The stems

    def _insert_tracks(
        self, route: ET.Element, playlist: ET.Element, tracks: tuple[StemTrack, ...]
    ) -> list[PlacedTrack]:
        routes = self._document.section("Routes")
        playlists = self._document.section("Playlists")
        order = self._make_room(route, len(tracks))
        placed = []
        for number, track in enumerate(tracks, start=1):
            name = self._free_track_name(track.name)
            copied = self._copy_route(route, name)
            info = copied.find("PresentationInfo")
            if info is None:
                info = ET.SubElement(copied, "PresentationInfo", {"flags": "AudioTrack,OrderSet"})
            info.set("order", str(order + number))
            info.set("color", color_number(track.color))
            stem_playlist = ET.Element("Playlist", dict(playlist.attrib))
            track_id = self._document.text(copied, "id")
            stem_playlist.attrib.update(
                {
                    "id": self._document.new_id(),
                    "name": name,
                    "orig-track-id": track_id,
                    "pgroup-id": "",
                    "shared-with-ids": "",
                    "frozen": "0",
                    "combine-ops": "0",
                }
            )
            copied.set("audio-playlist", stem_playlist.attrib["id"])
            for clip in track.clips:
                stem_playlist.append(self._stem_region(clip))
            self._document.insert(routes, list(routes).index(route) + number, copied)
            self._document.insert(playlists, len(playlists), stem_playlist)
            placed.append(PlacedTrack(track_id, name, track.stem))
        return placed

    def _make_room(self, route: ET.Element, tracks: int) -> int:
        """Move all that stands below ``route`` down by ``tracks``; return its own place."""
        own = route.find("PresentationInfo")
        order = self._document.integer(own, "order") if own is not None else 0
        for section in ("Routes", "VCAManager"):
            for info in self._document.section(section).iter("PresentationInfo"):
                place = self._document.integer(info, "order") if info.get("order") else 0
                if place > order:
                    info.set("order", str(place + tracks))
        return order

    def _free_track_name(self, wanted: str) -> str:
        # Ports are called "client:track/audio_out 1": a colon would end the client's name.
        wanted = ardour.printable(wanted).replace(":", "-").strip() or "stem"
        taken = {element.get("name") for element in self._document.root.iter("Route")}
        taken |= {element.get("name") for element in self._document.root.iter("IO")}
        taken |= {element.get("name") for element in self._document.root.iter("Processor")}
        names = (f"{wanted} {number}" if number > 1 else wanted for number in count(1))
        return next(name for name in names if name not in taken)

    def _copy_route(self, route: ET.Element, name: str) -> ET.Element:
        copied = copy.deepcopy(route)
        renew_ids(self._document, copied)
        copied.set("name", name)
        self._rename_ports(copied, route.get("name", ""), name)
        self._rename_processors(copied, route.get("name", ""), name)
        for control in copied.iterfind("Controllable[@name='rec-enable']"):
            control.set("value", "0")
        for line in copied.iter("AutomationList"):
            if line.get("state") in _AUTOMATION_BEING_WRITTEN:
                line.set("state", "Play")
        return copied

    def _rename_ports(self, route: ET.Element, old_name: str, name: str) -> None:
        """Name ports after their track; outputs keep their connections, inputs have none."""
        for io in route.iterfind("IO"):
            io.set("name", name)
            for port in io.iterfind("Port"):
                port.set("name", name + port.get("name", "").removeprefix(old_name))
                if io.get("direction") == "Input":
                    for connection in port.findall("Connection"):
                        self._document.remove(port, connection)

    def _rename_processors(self, route: ET.Element, old_name: str, name: str) -> None:
        """Keep what every track has, under its new name."""
        for processor in route.findall("Processor"):
            if processor.get("type") not in _KEPT_PROCESSORS:
                self._document.remove(route, processor)
            if processor.get("output") == old_name:
                processor.set("output", name)
            for prefix in _OWN_PREFIXES:
                if processor.get("name") == prefix + old_name:
                    processor.set("name", prefix + name)

    def _stem_region(self, clip: StemClip) -> ET.Element:
        document = self._document
        original = self._original(clip.clip_id)
        region = part(document, original, clip.offset_frames, clip.length_frames)
        gains = [self._gains.get(source, "1") for source in ardour.source_ids(original)]
        ids = self._insert_sources(clip, gains)
        set_start(document, region, 0)
        for name in list(region.attrib):
            if name.startswith(("source-", "master-source-")):
                del region.attrib[name]
        region.attrib.update({f"source-{n}": source for n, source in enumerate(ids)})
        region.attrib.update({f"master-source-{n}": source for n, source in enumerate(ids)})
        region.attrib.update(
            {
                "name": f"{clip.path.stem}.1",
                "muted": "0",
                "whole-file": "0",
                "import": "0",
                "external": "0",
                "channels": str(len(ids)),
            }
        )
        for effect in region.findall("RegionFXPlugin"):
            region.remove(effect)
        return region

    def _insert_sources(self, clip: StemClip, gains: list[str]) -> list[str]:
        if clip.path.parent != self._folder:
            raise ValueError(f"{clip.path} is not in the session's audio folder {self._folder}")
        document = self._document
        sources, whole_files = document.section("Sources"), document.section("Regions")
        ids = []
        for channel in range(clip.channels):
            source_id = document.new_id()
            attributes = {
                "name": clip.path.name,
                "take-id": "",
                "type": "audio",
                "flags": "",
                "id": source_id,
                "channel": str(channel),
                "origin": "",
                "gain": gains[min(channel, len(gains) - 1)] if gains else "1",
            }
            document.insert(sources, len(sources), ET.Element("Source", attributes))
            self._sources[source_id] = clip.clip_id
            ids.append(source_id)
        whole = whole_file_region(document, clip.path, clip.length_frames, ids)
        document.insert(whole_files, len(whole_files), whole)
        return ids

    def _insert_group(self, placement: Placement, placed: list[PlacedTrack]) -> str:
        groups = self._document.section("RouteGroups")
        taken = {group.get("name") for group in groups}
        wanted = ardour.printable(placement.group_name)
        names = (f"{wanted} {number}" if number > 1 else wanted for number in count(1))
        name = next(name for name in names if name not in taken)
        # Nothing is shared: a group that shared mute or selection would mute all stems at once.
        unshared = dict.fromkeys(
            ("gain", "mute", "solo", "recenable", "select", "route-active", "color", "monitoring"),
            "0",
        )
        attributes = {
            "id": self._document.new_id(),
            "rgba": color_number(placement.group_color),
            "used-to-share-gain": "0",
            "name": name,
            "hidden": "0",
            "active": "1",
            "relative": "1",
            **unshared,
            "group-master-number": "-1",
            "routes": " ".join(track.id for track in placed),
        }
        self._document.insert(groups, len(groups), ET.Element("RouteGroup", attributes))
        return name
