"""Times as musicians type them, to frames: ``1:07.250``, ``67.25`` or ``336000f``."""

from __future__ import annotations

import re
from fractions import Fraction

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):(?=\d{2}))?(\d+(?:\.\d*)?|\.\d+)")
_FRAMES = re.compile(r"(\d+)f")
_EXAMPLES = "write 1:07.250, 67.25 (seconds) or 336000f (frames)"


def parse_time(text: str, sample_rate_hz: int) -> int:
    """Return the frame that a time names, rounded to the nearest.

    Parameters
    ----------
    text
        ``[[h:]m:]s[.fraction]``, plain seconds, or frames with a trailing ``f``.
    sample_rate_hz
        Rate that the frames count at.

    Raises
    ------
    ValueError
        The text is none of these; the message shows how to write one.
    """
    text = text.strip()
    if match := _FRAMES.fullmatch(text):
        return int(match[1])
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a time; {_EXAMPLES}")
    hours, minutes, seconds = match[1] or "0", match[2] or "0", Fraction(match[3])
    if match[2] is not None and seconds >= 60:
        raise ValueError(f"'{text}' has more than 59 seconds after the minutes; {_EXAMPLES}")
    total_seconds = int(hours) * 3600 + int(minutes) * 60 + seconds
    return round(total_seconds * sample_rate_hz)


def parse_range(text: str, sample_rate_hz: int, end_frames: int) -> tuple[int, int]:
    """Return ``(start, end)`` in frames of a range such as ``0:30:1:07.5`` or ``10..20``.

    ``START:END``, ``START..END`` and ``START-END`` mean the same; an empty START is 0, an empty
    END is ``end_frames``. Of several readings of the colons, the one with equally many on both
    sides counts (``0:30:1:00`` is 0:30 to 1:00).

    Raises
    ------
    ValueError
        Not a range, an ambiguous one, an empty one, or one that ends after ``end_frames``.
    """
    start, end = _split_range(text.strip())
    start_frames = parse_time(start, sample_rate_hz) if start else 0
    range_end_frames = parse_time(end, sample_rate_hz) if end else end_frames
    if start_frames >= range_end_frames:
        raise ValueError(f"the range {text} is empty: it has to end after it starts")
    if range_end_frames > end_frames:
        available = format_time(end_frames, sample_rate_hz)
        raise ValueError(f"the range {text} ends after the audio does, at {available}")
    return start_frames, range_end_frames


def _split_range(text: str) -> tuple[str, str]:
    for separator in ("..", "-"):
        if separator in text:
            start, _, end = text.partition(separator)
            return start.strip(), end.strip()
    readings = [
        (text[:at], text[at + 1 :])
        for at, character in enumerate(text)
        if character == ":" and _is_time_or_empty(text[:at]) and _is_time_or_empty(text[at + 1 :])
    ]
    balanced = [(start, end) for start, end in readings if start.count(":") == end.count(":")]
    if len(balanced) == 1:
        return balanced[0]
    if len(readings) == 1:
        return readings[0]
    if not readings:
        raise ValueError(f"'{text}' is not a range; write START:END, for example 0:30:1:07.5")
    choices = " or ".join(f"{start}..{end}" for start, end in readings)
    raise ValueError(f"the range {text} can be read in several ways; write {choices}")


def _is_time_or_empty(text: str) -> bool:
    return not text or bool(_CLOCK.fullmatch(text) or _FRAMES.fullmatch(text))


def format_time(frames: int, sample_rate_hz: int) -> str:
    """Return ``m:ss.mmm`` (``h:mm:ss.mmm`` from an hour on), rounded to the millisecond."""
    milliseconds = round(frames * 1000 / sample_rate_hz)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
