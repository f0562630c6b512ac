"""Taking earlier stems out of a session again, to make place for new ones."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection

from bridge.sessions import ardour
from bridge.sessions.ardour_xml import Document


def remove_stems(document: Document, source_ids: Collection[str]) -> tuple[str, ...]:
    """Take sources out with all regions of them, and tracks that are empty then.

    Returns
    -------
    tuple of str
        Names of the removed tracks.
    """
    gone = set(source_ids)
    touched = set()
    for section in ("Regions", "Playlists", "UnusedPlaylists"):
        parents = [document.section(section)]
        if section != "Regions":
            parents = list(document.section(section))
        for parent in parents:
            for region in parent.findall("Region"):
                if gone & set(ardour.source_ids(region)):
                    document.remove(parent, region)
                    touched.add(parent)
    sources = document.section("Sources")
    for source in sources.findall("Source"):
        if source.get("id") in gone:
            document.remove(sources, source)
    removed = []
    for route, playlist in list(ardour.audio_tracks(document)):
        if playlist in touched and playlist.find("Region") is None:
            document.remove(document.section("Routes"), route)
            document.remove(document.section("Playlists"), playlist)
            _forget_route(document, route)
            removed.append(ardour.printable(route.get("name", "")))
    return tuple(removed)


def _forget_route(document: Document, route: ET.Element) -> None:
    groups = document.section("RouteGroups")
    for group in groups.findall("RouteGroup"):
        members = group.get("routes", "").split()
        if route.get("id") in members:
            members.remove(route.get("id", ""))
            group.set("routes", " ".join(members))
            if not members:
                document.remove(groups, group)
    for port in document.root.iter("Port"):
        for connection in port.findall("Connection"):
            if connection.get("other", "").startswith(f"{route.get('name')}/"):
                document.remove(port, connection)
