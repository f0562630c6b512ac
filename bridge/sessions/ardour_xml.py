"""The Ardour session file as a document: safe reading, faithful writing, its times and ids.

What a reader has to know of the format:

- ``a<superclock>`` is audio time; there are ``TempoMap@superclocks-per-second`` of them in a
  second, a number that the common sample rates divide. ``b<ticks>`` is musical time, 1920 ticks
  to the quarter note, and the tempo map turns it into superclocks.
- Every object has an ``id`` of its own, taken from ``Session@id-counter``.
- Colours are RGBA in one unsigned 32-bit number.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import count
from pathlib import Path
from xml.parsers import expat

from bridge.errors import SessionFormatError

#: Session formats that are read and written: 7002 is Ardour 7.0 to 8.2, 7003 is 8.4 and later.
KNOWN_VERSIONS = ("7002", "7003")

_DEFAULT_SUPERCLOCKS_PER_SECOND = 282_240_000
_TICKS_PER_QUARTER = 1920
# 2**62: what Ardour's 64-bit times hold, and 500 years.
_LARGEST_TIME = 1 << 62
_LARGEST_FILE_BYTES = 1 << 28
_DEEPEST_NESTING = 64
_RATES_HZ = range(8_000, 768_001)
_TIME = re.compile(r"([ab])(\d{1,19})")


class Document:
    """One parsed session file.

    Everything that is not edited is written back as it was read: unknown elements and
    attributes, their order, comments and layout.

    Parameters
    ----------
    path
        For messages.
    data
        The file's bytes.

    Raises
    ------
    SessionFormatError
        Not an Ardour session, of an unknown version, or with values that no Ardour writes.
        Document types are refused before anything in them is looked at, so entities can
        neither expand nor fetch files.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.root = _parse(path, data)
        if self.root.tag != "Session":
            raise self.error(f"is not an Ardour session but holds <{self.root.tag[:40]}>")
        self.version = self.text(self.root, "version")
        if self.version not in KNOWN_VERSIONS:
            raise SessionFormatError(
                f"{path}: has session format {self.version[:20]!r}, this program knows "
                f"{' and '.join(KNOWN_VERSIONS)} (Ardour 7 and 8); save it with one of these"
            )
        self.sample_rate_hz = self.integer(self.root, "sample-rate")
        if self.sample_rate_hz not in _RATES_HZ:
            raise self.error(f"has an impossible sample rate of {self.sample_rate_hz} Hz")
        self._read_tempo_map()
        self._ids = count(self._first_free_id())

    def serialize(self) -> bytes:
        """Return the file's bytes, laid out as Ardour lays them out."""
        self.root.set("id-counter", str(next(self._ids)))
        text: str = ET.tostring(self.root, encoding="unicode")
        # Ardour closes empty elements without a space; within values ">" is always escaped.
        text = text.replace(" />", "/>")
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()

    # Finding things

    def error(self, what: str) -> SessionFormatError:
        """Return the error that ``what`` is wrong with this file."""
        return SessionFormatError(
            f"{self.path}: {what}, so it is damaged; open it in Ardour and save it again, "
            "or take its .bak"
        )

    def section(self, tag: str) -> ET.Element:
        """Return a child of the session, made if need be."""
        found = self.root.find(tag)
        if found is None:
            found = self.insert(self.root, len(self.root), ET.Element(tag), depth=0)
        return found

    def text(self, element: ET.Element, name: str) -> str:
        """Return an attribute that must be there."""
        value = element.get(name)
        if value is None:
            raise self.error(f"lacks {name!r} in <{element.tag[:40]}>")
        return value

    def integer(self, element: ET.Element, name: str) -> int:
        """Return an attribute that must be a whole number from 0 on."""
        value = self.text(element, name)
        if not re.fullmatch(r"\d{1,19}", value):
            raise self.error(f"has {name}={value[:20]!r} in <{element.tag[:40]}>")
        return int(value)

    def number(self, element: ET.Element, name: str, default: float) -> float:
        """Return an attribute that is a finite number if it is there."""
        value = element.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f"has {name}={value[:20]!r} in <{element.tag[:40]}>")
        return number

    # Times

    def frames(self, superclocks: int) -> int:
        """Return the frame in which a time lies: Ardour 7.3 takes the one before, not the nearest.

        Positions need not be whole frames: regions moved to the grid, or sessions that came from
        another rate, lie between them.
        """
        return superclocks * self.sample_rate_hz // self.superclocks_per_second

    def superclocks(self, frames: int) -> int:
        """Return the first time that lies in a frame."""
        return -(-frames * self.superclocks_per_second // self.sample_rate_hz)

    def audio_time(self, frames: int) -> str:
        """Return a frame as Ardour writes it."""
        return f"a{self.superclocks(frames)}"

    def time(self, text: str, where: str) -> int:
        """Return an absolute time in superclocks; ``where`` names the attribute in messages."""
        match = _TIME.fullmatch(text)
        if not match or int(match[2]) > _LARGEST_TIME:
            raise self.error(f"has the time {text[:24]!r} in {where}")
        value = int(match[2])
        return value if match[1] == "a" else self._superclocks_at(value)

    def span(self, text: str, where: str) -> tuple[int, int]:
        """Return ``length@position`` as (position, length) in superclocks."""
        length, at, position = text.partition("@")
        if not at:
            raise self.error(f"has the length {text[:24]!r} in {where}")
        start = self.time(position, where)
        if not length.startswith("b"):
            return start, self.time(length, where)
        # A musical length counts from its position; only from a musical one can it be followed.
        if not position.startswith("b"):
            raise self.error(f"has the length {text[:24]!r} in {where}")
        self.time(length, where)
        end = self._superclocks_at(int(position[1:]) + int(length[1:]))
        return start, end - start

    def _read_tempo_map(self) -> None:
        self.superclocks_per_second = _DEFAULT_SUPERCLOCKS_PER_SECOND
        self._tempos: list[
            tuple[int, int, float, float]
        ] = []  # ticks, superclocks, per tick, omega
        tempo_map = self.root.find("TempoMap")
        if tempo_map is None:
            return
        if tempo_map.get("superclocks-per-second") is not None:
            self.superclocks_per_second = self.integer(tempo_map, "superclocks-per-second")
        if not self.sample_rate_hz <= self.superclocks_per_second <= 1 << 40:
            raise self.error(f"has {self.superclocks_per_second} superclocks per second")
        for tempo in tempo_map.iterfind("Tempos/Tempo"):
            quarters = re.fullmatch(r"(\d{1,12}):(\d{1,4})", tempo.get("quarters", ""))
            notes_per_minute = self.number(tempo, "npm", 0.0)
            note_type = self.number(tempo, "note-type", 4.0)
            if not quarters or notes_per_minute <= 0 or note_type <= 0:
                raise self.error("has a tempo that cannot be followed")
            quarters_per_second = notes_per_minute * 4 / note_type / 60
            self._tempos.append(
                (
                    int(quarters[1]) * _TICKS_PER_QUARTER + int(quarters[2]),
                    self.integer(tempo, "sclock"),
                    self.superclocks_per_second / quarters_per_second / _TICKS_PER_QUARTER,
                    self.number(tempo, "omega", 0.0),
                )
            )
        self._tempos.sort()

    def _superclocks_at(self, ticks: int) -> int:
        earlier = [tempo for tempo in self._tempos if tempo[0] <= ticks]
        if not earlier:
            raise self.error("has musical times but no tempo for them")
        start_ticks, start, per_tick, omega = earlier[-1]
        if omega:
            raise SessionFormatError(
                f"{self.path}: has a region glued to the beats of a tempo ramp; set its position "
                "to audio time in Ardour (Region > Position > Glue to Bars and Beats) and save"
            )
        return start + round((ticks - start_ticks) * per_tick)

    # Ids and new elements

    def _first_free_id(self) -> int:
        free = self.integer(self.root, "id-counter")
        for element in self.root.iter():
            value = element.get("id", "")
            if value.isdecimal() and len(value) < 19:
                free = max(free, int(value) + 1)
        return free

    def new_id(self) -> str:
        """Return an id that nothing in the file has."""
        return str(next(self._ids))

    def insert(
        self, parent: ET.Element, index: int, element: ET.Element, depth: int = 1
    ) -> ET.Element:
        """Put ``element`` before child ``index`` of ``parent``, indented like the file.

        ``depth`` is the parent's: 0 for the session itself, 1 for its sections.
        """
        ET.indent(element, "  ", level=depth + 1)
        inner, outer = "\n" + "  " * (depth + 1), "\n" + "  " * depth
        if len(parent) == 0:
            parent.text = inner
        elif index == len(parent):
            parent[-1].tail = inner
        element.tail = outer if index == len(parent) else inner
        parent.insert(index, element)
        return element

    def remove(self, parent: ET.Element, element: ET.Element) -> None:
        """Take ``element`` out of ``parent`` and close the gap."""
        index = list(parent).index(element)
        if index == len(parent) - 1:
            if index:
                parent[index - 1].tail = element.tail
            else:
                parent.text = None
        parent.remove(element)


def color_text(value: str | None) -> str | None:
    """Return an RGBA number as ``#rrggbb``; None for none set."""
    if value is None or not value.isdecimal() or len(value) > 10 or int(value) == 0:
        return None
    return f"#{int(value) >> 8 & 0xFFFFFF:06x}"


def color_number(text: str) -> str:
    """Return ``#rrggbb`` as the opaque RGBA number that Ardour writes."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"a color is #rrggbb, not {text!r}")
    return str(int(text[1:], 16) << 8 | 0xFF)


def _parse(path: Path, data: bytes) -> ET.Element:
    if len(data) > _LARGEST_FILE_BYTES:
        raise SessionFormatError(
            f"{path}: has {len(data) >> 20} MB, more than any session; name the .ardour file"
        )
    builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST_NESTING:
            raise SessionFormatError(
                f"{path}: nests deeper than any session; it is damaged, take its .bak"
            )
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise SessionFormatError(
            f"{path}: declares a document type, which no Ardour writes; it is not safe to read"
        )

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.CommentHandler = lambda text: builder.comment(text) if depth else None
    parser.ProcessingInstructionHandler = lambda target, text: (
        builder.pi(target, text) if depth else None
    )
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        # ValueError and LookupError: an encoding that is unknown or cannot be read.
        raise SessionFormatError(
            f"{path}: is not a whole session file ({error}); name a .ardour file, or take its .bak"
        ) from error
