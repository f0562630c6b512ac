"""Parts of an Ardour region: what a cut does to its times, fades and gain envelope.

A part plays exactly what the whole region played there. That is why a cut never runs through an
active fade (a fade's spline has no exact half), and why the envelope gets a point at the cut,
evaluated as Ardour evaluates it between two points. What remains is Ardour's own inaccuracy: in a
read of n frames it evaluates an envelope at steps of n/(n-1) frames, so that a cut, which moves
the reads, moves the envelope by up to one frame.
"""

from __future__ import annotations

import copy
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bridge.errors import SessionFormatError
from bridge.sessions.ardour_xml import Document

_FADE_TAGS = {
    "in": ("FadeIn", "InverseFadeIn", "InvFadeIn"),
    "out": ("FadeOut", "InverseFadeOut", "InvFadeOut"),
}
_DEFAULT_FADE_FRAMES = 64
# Ardour's faders and envelopes end at +6 dB unless the user's preferences allow more.
_LARGEST_GAIN = 2.0


@dataclass(frozen=True)
class Extent:
    """Where a region lies, in frames: on the timeline, in its sources, and for how long."""

    position_frames: int
    start_frames: int
    length_frames: int


def extent(document: Document, region: ET.Element) -> Extent:
    """Return where a region lies."""
    name = region.get("name", "")[:40]
    position, length = document.span(document.text(region, "length"), f"region {name!r}")
    start = document.time(document.text(region, "start"), f"region {name!r}")
    return Extent(document.frames(position), document.frames(start), document.frames(length))


def part(document: Document, region: ET.Element, offset_frames: int, frames: int) -> ET.Element:
    """Return a copy of ``region`` that plays only ``frames`` frames from ``offset_frames`` on.

    The copy has a new id. Fades stay at the region's own ends; at a cut there is none.

    Raises
    ------
    SessionFormatError
        The part reaches outside the region, or a cut runs through an active fade.
    """
    whole = extent(document, region)
    copied = copy.deepcopy(region)
    renew_ids(document, copied)
    end_frames = offset_frames + frames
    if frames < 1 or offset_frames < 0 or end_frames > whole.length_frames:
        raise SessionFormatError(
            f"{document.path}: region {region.get('name', '')!r} has {whole.length_frames} frames, "
            f"not {offset_frames} to {end_frames}; choose a range within it"
        )
    if (offset_frames, frames) == (0, whole.length_frames):
        return copied
    for cut_frames in (offset_frames, end_frames):
        if 0 < cut_frames < whole.length_frames:
            _check_no_fade_at(document, region, whole, cut_frames)
    if offset_frames > 0:
        _drop_fade(copied, "in")
    if end_frames < whole.length_frames:
        _drop_fade(copied, "out")
    set_start(document, copied, whole.start_frames + offset_frames)
    position = document.audio_time(whole.position_frames + offset_frames)
    copied.set("length", f"{document.audio_time(frames)}@{position}")
    _cut_envelope(document, copied, offset_frames, end_frames)
    return copied


def whole_file_region(
    document: Document, path: Path, frames: int, source_ids: list[str]
) -> ET.Element:
    """Return the region that Ardour lists for a file as such."""
    attributes = {
        "name": path.stem,
        "muted": "0",
        "opaque": "1",
        "locked": "0",
        "video-locked": "0",
        "automatic": "1",
        "whole-file": "1",
        "import": "0",
        "external": "0",
        "sync-marked": "0",
        "left-of-split": "0",
        "right-of-split": "0",
        "hidden": "0",
        "position-locked": "0",
        "valid-transients": "0",
        "start": "a0",
        "length": f"{document.audio_time(frames)}@a0",
        "sync-position": "a0",
        "ancestral-start": "a0",
        "ancestral-length": "a0@a0",
        "stretch": "1",
        "shift": "1",
        "layering-index": "0",
        "tags": "",
        "contents": "0",
        "envelope-active": "0",
        "default-fade-in": "0",
        "default-fade-out": "0",
        "fade-in-active": "0",
        "fade-out-active": "0",
        "scale-amplitude": "1",
        "id": document.new_id(),
        "type": "audio",
        "first-edit": "nothing",
    }
    attributes |= {f"source-{n}": source for n, source in enumerate(source_ids)}
    attributes |= {f"master-source-{n}": source for n, source in enumerate(source_ids)}
    attributes["channels"] = str(len(source_ids))
    region = ET.Element("Region", attributes)
    for tag in ("Envelope", "FadeIn", "FadeOut"):
        ET.SubElement(region, tag, {"default": "yes"})
    return region


def set_start(document: Document, region: ET.Element, start_frames: int) -> None:
    """Let a region begin at another frame of its sources; its sync point moves along."""
    old_start = document.time(document.text(region, "start"), "a region")
    new_start = document.superclocks(start_frames)
    region.set("start", f"a{new_start}")
    if region.get("sync-position") is not None:
        sync = document.time(document.text(region, "sync-position"), "a region")
        region.set("sync-position", f"a{max(sync - old_start + new_start, 0)}")


def renew_ids(document: Document, element: ET.Element) -> None:
    """Give an element and all within it ids of their own."""
    for node in element.iter():
        if node.get("id") is not None:
            node.set("id", document.new_id())


def _check_no_fade_at(
    document: Document, region: ET.Element, whole: Extent, cut_frames: int
) -> None:
    fade_in = _fade_frames(document, region, "in")
    fade_out = _fade_frames(document, region, "out")
    for side, inside in (
        ("in", cut_frames < fade_in),
        ("out", cut_frames > whole.length_frames - fade_out),
    ):
        if inside:
            frames = fade_in if side == "in" else fade_out
            raise SessionFormatError(
                f"{document.path}: the range cuts through the fade-{side} of region "
                f"{region.get('name', '')!r} ({frames / document.sample_rate_hz:.3f} s); "
                "take the whole fade into the range, or none of it"
            )


def _fade_frames(document: Document, region: ET.Element, side: str) -> int:
    if region.get(f"fade-{side}-active", "1") != "1":
        return 0
    events = region.find(f"{_FADE_TAGS[side][0]}/AutomationList/events")
    if events is None:
        return _DEFAULT_FADE_FRAMES
    points = _points(document, events)
    return document.frames(points[-1][0]) if points else 0


def _drop_fade(region: ET.Element, side: str) -> None:
    region.set(f"fade-{side}-active", "0")
    region.set(f"default-fade-{side}", "0")
    plain, *inverse = _FADE_TAGS[side]
    for element in list(region):
        if element.tag in inverse:
            region.remove(element)
        elif element.tag == plain:
            for child in list(element):
                element.remove(child)
            element.text = None
            element.attrib.clear()
            element.set("default", "yes")


def _cut_envelope(
    document: Document, region: ET.Element, start_frames: int, end_frames: int
) -> None:
    line = region.find("Envelope/AutomationList")
    events = line.find("events") if line is not None else None
    if line is None or events is None:
        return
    points = _points(document, events)
    start, end = document.superclocks(start_frames), document.superclocks(end_frames)
    style = line.get("interpolation-style", "Exponential")
    if style == "Curved" and len(points) > 2 and region.get("envelope-active") == "1":
        raise SessionFormatError(
            f"{document.path}: region {region.get('name', '')!r} has a gain envelope of splines, "
            "which cannot be cut; separate the whole region"
        )
    kept = [(time - start, value) for time, value in points if start < time < end]
    kept.insert(0, (0, _value_at(points, start, style)))
    kept.append((end - start, _value_at(points, end, style)))
    events.text = "".join(f"a{time} {value:.17g}\n" for time, value in kept)


def _points(document: Document, events: ET.Element) -> list[tuple[int, float]]:
    points = []
    for text in (events.text or "").split("\n"):
        if not text.strip():
            continue
        match = re.fullmatch(r"\s*(a\d+)\s+(\S+)\s*", text)
        try:
            value = float(match[2]) if match else math.nan
        except ValueError:
            value = math.nan
        if not match or not math.isfinite(value):
            raise document.error(f"has the automation point {text[:40]!r}")
        points.append((document.time(match[1], "an automation point"), value))
    return points


def _value_at(points: list[tuple[int, float]], time: int, style: str) -> float:
    if not points:
        return 1.0
    if time <= points[0][0]:
        return points[0][1]
    for (left_time, left), (right_time, right) in pairwise(points):
        if left_time <= time <= right_time and left_time < right_time:
            fraction = (time - left_time) / (right_time - left_time)
            return _between(left, right, fraction, style)
    return points[-1][1]


def _between(left: float, right: float, fraction: float, style: str) -> float:
    """Return the value between two points as Ardour's control lists interpolate it."""
    if left == right or fraction == 0.0:
        return left
    if fraction == 1.0:
        return right
    if style == "Discrete":
        return left
    if style == "Logarithmic" and left > 0 and right > 0:
        return float(left * (right / left) ** fraction)
    if style == "Exponential":
        position = _slider(left) + fraction * (_slider(right) - _slider(left))
        return _gain(position)
    return left + fraction * (right - left)


def _slider(gain: float) -> float:
    """Return the fader position of a gain (Ardour: ``gain_to_slider_position_with_max``)."""
    gain = gain * 2.0 / _LARGEST_GAIN
    if gain <= 0:
        return 0.0
    inner = (6.0 * math.log2(gain) + 192.0) / 198.0
    return float(inner**8)


def _gain(position: float) -> float:
    """Return the gain of a fader position, the inverse of :func:`_slider`."""
    if position <= 0:
        return 0.0
    return _LARGEST_GAIN / 2.0 * math.exp2((position ** (1 / 8) * 198.0 - 192.0) / 6.0)
