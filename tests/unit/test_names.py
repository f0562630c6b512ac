"""File names that every system takes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.names import safe_file_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mix - vocals", "Mix - vocals.wav"),
        ("a/b\\c:d", "a_b_c_d.wav"),
        ("line\nbreak", "line_break.wav"),
        ("..", "untitled.wav"),
        ("../../etc/passwd", "_.._etc_passwd.wav"),
        ("", "untitled.wav"),
        ("CON", "_CON.wav"),
        ("lpt1", "_lpt1.wav"),
        ("CONcert", "CONcert.wav"),
        ("trailing. ", "trailing.wav"),
        ("e\u0301", "\u00e9.wav"),
        ("🎸 take", "🎸 take.wav"),
        ("evil\u202egnp", "evilgnp.wav"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert safe_file_name(name, ".wav") == expected


@given(st.text(max_size=400))
def test_any_text_becomes_one_file_that_can_be_made(text: str) -> None:
    name = safe_file_name(text, ".wav")
    assert name.endswith(".wav")
    assert len(name.encode()) <= 255
    assert Path(name).name == name


def test_255_bytes_of_emoji_make_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / safe_file_name("🎸" * 64, ".wav")
    path.touch()
    assert path.exists()


def test_bytes_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert safe_file_name(name, ".wav").encode("utf-8")
