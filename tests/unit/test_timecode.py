"""Times and ranges as musicians type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.timecode import format_time, parse_range, parse_time


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("0", 0),
        ("67.25", 3228000),
        ("1:07.250", 3228000),
        ("1:00:00", 172_800_000),
        ("336000f", 336000),
        (".5", 24000),
        (" 2 ", 96000),
        ("90", 4_320_000),
    ],
)
def test_times(text: str, frames: int) -> None:
    assert parse_time(text, 48000) == frames


@pytest.mark.parametrize("text", ["", "x", "-1", "1:7", "1:75", "1:2:3:4", "12ff", "1e3", "nan"])
def test_what_is_no_time_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"1:07\.250"):
        parse_time(text, 48000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10:20", (10, 20)),
        ("0:30:1:07", (30, 67)),
        ("0:30..1:07", (30, 67)),
        ("0:30-1:07", (30, 67)),
        ("1:00:", (60, 200)),
        (":1:00", (0, 60)),
        ("20:", (20, 200)),
        (":20", (0, 20)),
        ("480000f:960000f", (10, 20)),
        ("10:1:07", (10, 67)),
    ],
)
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    start, end = parse_range(text, 48000, 200 * 48000)
    assert (start / 48000, end / 48000) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20:10", "empty"),
        ("10:10", "empty"),
        ("10:300", "ends after the audio"),
        ("0:05:10", "several ways"),
        ("abc", "not a range"),
        ("5", "not a range"),
    ],
)
def test_bad_ranges_say_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_range(text, 48000, 200 * 48000)


@given(frames=st.integers(0, 10**10), rate=st.sampled_from([22050, 44100, 48000, 96000]))
def test_what_is_printed_is_read_back_within_a_millisecond(frames: int, rate: int) -> None:
    assert abs(parse_time(format_time(frames, rate), rate) - frames) <= rate / 1000
