"""Reading Ardour sessions: the model, the folders, and files that are not what they claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import sessions
from bridge.errors import SessionFormatError
from bridge.sessions.ardour_xml import Document
from tests.unit.session_workshop import CLIP_FRAMES, edited, example_session

MIX_LENGTH = 'length="a5744777640@a564485880"'
HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return example_session(tmp_path / "Song")


def refusal(path: Path) -> str:
    with pytest.raises(SessionFormatError) as caught:
        sessions.read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert caught.value.exit_code == 2
    return text


# What is in a session


def test_tracks_and_clips_of_the_example(file: Path) -> None:
    session = sessions.read(file)
    assert (session.daw, session.version, session.sample_rate_hz) == ("Ardour", "7002", 48_000)
    assert session.name == "Stembridge Example"
    mix, guide = session.tracks
    assert (mix.name, mix.channels, mix.color, mix.muted) == ("Mix", 2, "#6f7fd0", False)
    assert (guide.name, guide.channels) == ("Guide", 1)
    (clip,) = mix.clips
    assert clip.name == "Song.1"
    assert (clip.position_frames, clip.start_frames) == (96_001, 12_345)
    assert clip.length_frames == CLIP_FRAMES
    audio = file.parent / "interchange" / "session" / "audiofiles" / "Song.flac"
    assert clip.sources == ((audio, 0), (audio, 1))
    assert session.track_of(clip.id) == mix
    assert session.clips_named("Song.1") == (clip,)


def test_a_folder_stands_for_its_session(file: Path) -> None:
    assert sessions.read(file.parent) == sessions.read(file)


def test_of_several_snapshots_the_one_named_like_the_folder_counts(file: Path) -> None:
    snapshot = file.with_name("Take 2.ardour")
    snapshot.write_bytes(file.read_bytes())
    text = refusal(file.parent)
    assert "Take 2.ardour" in text
    assert file.name in text
    snapshot.rename(file.with_name("Song.ardour"))
    assert sessions.read(file.parent).path.name == "Song.ardour"


@pytest.mark.parametrize(
    "name", ["Song.ardour.bak", "Song.history", "Song.pending", "Song.template"]
)
def test_backups_and_templates_are_not_taken_for_the_session(file: Path, name: str) -> None:
    other = file.with_name(name)
    other.write_bytes(file.read_bytes())
    assert "backup or template" in refusal(other)


def test_unknown_names_list_the_known_ones(file: Path) -> None:
    session = sessions.read(file)
    with pytest.raises(SessionFormatError, match="'Mix', 'Guide'"):
        session.track("Mixx")
    with pytest.raises(SessionFormatError, match=r"'Song\.1', 'Count-in\.1'"):
        session.clips_named("Song")


def test_regions_of_one_name_on_two_tracks_are_ambiguous(file: Path) -> None:
    session = sessions.read(edited(file, ('name="Count-in.1"', 'name="Song.1"')))
    with pytest.raises(SessionFormatError, match="several tracks"):
        session.clips_named("Song.1")


def test_format_7003_is_read(file: Path) -> None:
    assert sessions.read(edited(file, ('version="7002"', 'version="7003"'))).version == "7003"


def test_another_time_base_is_followed(file: Path) -> None:
    """Later Ardours may count other superclocks; the file says which."""
    text = file.read_text(encoding="utf-8")
    doubled = text.replace(
        'superclocks-per-second="282240000"', 'superclocks-per-second="564480000"'
    )
    doubled = doubled.replace(MIX_LENGTH, 'length="a11489555280@a1128971760"')
    file.write_text(doubled, encoding="utf-8")
    clip = sessions.read(file).track("Mix").clips[0]
    assert (clip.position_frames, clip.length_frames) == (96_001, CLIP_FRAMES)


def test_musical_time_follows_the_tempo(file: Path) -> None:
    """Ardour writes beats as ticks of 1/1920 quarter; at 120 a minute a quarter lasts 0.5 s."""
    clip = sessions.read(edited(file, ("@a564485880", "@b7681"))).track("Mix").clips[0]
    assert clip.position_frames == 7681 * 48_000 // 1920 // 2
    assert clip.length_frames == CLIP_FRAMES


@pytest.mark.parametrize("superclocks", [0, 1, 2_940, 5_879])
def test_a_time_between_two_frames_is_in_the_earlier_one(file: Path, superclocks: int) -> None:
    """5880 superclocks are a frame at 48 kHz; what Ardour does is tested in ``tests/daw``."""
    moved = f'length="a{5744777640 + superclocks}@a{564485880 + superclocks}"'
    clip = sessions.read(edited(file, (MIX_LENGTH, moved))).track("Mix").clips[0]
    assert (clip.position_frames, clip.length_frames) == (96_001, CLIP_FRAMES)


@pytest.mark.parametrize("rate_hz", [44_100, 48_000, 88_200, 96_000, 37_037])
def test_frames_keep_their_number_as_times(file: Path, rate_hz: int) -> None:
    edited(file, ('sample-rate="48000"', f'sample-rate="{rate_hz}"'))
    document = Document(file, file.read_bytes())
    for frames in (0, 1, 2, 12_345, 10**9 + 7):
        assert document.frames(document.superclocks(frames)) == frames


def test_external_audio_keeps_its_path(file: Path) -> None:
    edited(file, ('name="Song.flac"', 'origin="/music/mix.wav" name="Song.flac"'))
    text = file.read_text(encoding="utf-8").replace('channel="0" origin=""', 'channel="0"')
    file.write_text(text.replace('channel="1" origin=""', 'channel="1"'), encoding="utf-8")
    clip = sessions.read(file).track("Mix").clips[0]
    assert clip.sources[1] == (Path("/music/mix.wav"), 1)


def test_the_only_interchange_folder_counts_whatever_its_name(file: Path) -> None:
    interchange = file.parent / "interchange"
    (interchange / "session").rename(interchange / "Old name")
    (interchange / ".DS_Store").touch()
    session = sessions.read(file)
    assert sessions.audio_folder(session) == interchange / "Old name" / "audiofiles"
    assert session.track("Mix").clips[0].sources[0].path.is_file()


def test_two_interchange_folders_are_refused(file: Path) -> None:
    (file.parent / "interchange" / "other").mkdir()
    with pytest.raises(SessionFormatError, match="2 folders"):
        sessions.read(file)


def test_audio_is_found_on_the_search_path(file: Path, tmp_path: Path) -> None:
    audio = sessions.read(file).track("Mix").clips[0].sources[0].path
    elsewhere = tmp_path / "raid"
    elsewhere.mkdir()
    audio.rename(elsewhere / audio.name)
    edited(
        file, ('name="audio-search-path" value=""', f'name="audio-search-path" value="{elsewhere}"')
    )
    assert sessions.read(file).track("Mix").clips[0].sources[0].path == elsewhere / audio.name


def test_a_compound_clip_has_a_problem_and_the_rest_is_read(file: Path) -> None:
    edited(file, ('name="Song.flac" take-id=""', 'name="Song.flac" playlist="277" take-id=""'))
    session = sessions.read(file)
    assert "compound" in session.track("Mix").clips[0].problem
    assert session.track("Guide").clips[0].problem == ""


def test_a_region_without_its_source_has_a_problem(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start = text.index("<Sources>")
    end = text.index("</Sources>")
    file.write_text(text[:start] + "<Sources>" + text[end:], encoding="utf-8")
    assert "lacks its source" in sessions.read(file).track("Mix").clips[0].problem


def test_names_stay_on_one_line(file: Path) -> None:
    edited(file, ('name="Song.1"', 'name="a&#10;b\u202ec"'))
    assert sessions.read(file).track("Mix").clips[0].name == "a\ufffdb\ufffdc"


# Nothing is lost by reading and writing


def test_an_unedited_session_is_written_as_ardour_wrote_it(file: Path) -> None:
    data = file.read_bytes()
    assert Document(file, data).serialize() == data


def test_unknown_nodes_comments_and_order_are_kept(file: Path) -> None:
    extra = '<Future z="1" a="2">text &amp; &lt;<!-- remark --><?tool data?><Inner/></Future>'
    edited(file, ("</Session>", f"  {extra}\n</Session>"))
    data = file.read_bytes()
    assert Document(file, data).serialize() == data


# Files that want to do harm


BILLION_LAUGHS = (
    HEAD
    + '<!DOCTYPE Session [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + ']>\n<Session version="7002" name="&j;"/>'
)
HOSTILE = {
    "entity bomb": BILLION_LAUGHS,
    "external entity": HEAD
    + '<!DOCTYPE Session [<!ENTITY x SYSTEM "file:///etc/passwd">]><Session name="&x;"/>',
    "external subset": HEAD + '<!DOCTYPE Session SYSTEM "http://127.0.0.1:9/x.dtd"><Session/>',
    "empty": "",
    "text": "hello",
    "other xml": HEAD + "<html/>",
    "cut off": HEAD + '<Session version="7002" name="x" sample-rate="48000"><Routes>',
    "deep": HEAD + "<Session>" + "<a>" * 100_000,
    "control character": HEAD + '<Session version="7002" name="&#1;"/>',
    "unknown encoding": '<?xml version="1.0" encoding="utf-7"?><Session/>',
    "no version": HEAD + "<Session/>",
    "no rate": HEAD + '<Session version="7002" id-counter="1"/>',
    "rate 0": HEAD + '<Session version="7002" sample-rate="0" id-counter="1"/>',
    "no id counter": HEAD + '<Session version="7002" sample-rate="48000"/>',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.ardour"
    path.write_text(HOSTILE[name], encoding="utf-8")
    refusal(path)


@pytest.mark.parametrize("external", [False, True])
def test_a_document_type_is_refused_in_a_session_that_is_fine_otherwise(
    file: Path, external: bool
) -> None:
    entity = 'SYSTEM "file:///etc/hostname"' if external else '"Evil"'
    declaration = f"<!DOCTYPE Session [<!ENTITY x {entity}>]>\n<Session "
    edited(file, ("<Session ", declaration))
    if not external:
        edited(file, ('name="Song.1"', 'name="&x;"'))
    assert "document type" in refusal(file)


def test_bytes_that_are_no_text_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.ardour"
    path.write_bytes(bytes(range(256)) * 100)
    refusal(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (MIX_LENGTH, 'length="aNaN@a0"'),
        (MIX_LENGTH, 'length="a-5@a0"'),
        (MIX_LENGTH, 'length="a0@a0"'),
        (MIX_LENGTH, 'length="a5744777640"'),
        (MIX_LENGTH, f'length="a{"9" * 5000}@a0"'),
        (MIX_LENGTH, 'length="a9223372036854775807@a0"'),
        (MIX_LENGTH, 'length="b100@a0"'),
        (MIX_LENGTH, ""),
        ('start="a72588600"', 'start="1e9"'),
        ('scale-amplitude="1"', 'scale-amplitude="nan"'),
        ('scale-amplitude="1"', 'scale-amplitude="inf"'),
        ('sample-rate="48000"', 'sample-rate="48000.5"'),
        ('sample-rate="48000"', 'sample-rate="-48000"'),
        ('name="Song.flac"', 'name="../../../../etc/passwd"'),
        ('name="Song.flac"', 'name=".."'),
        ('channel="1"', 'channel="99999999"'),
        ('channel="1"', 'channel="-1"'),
        ('audio-playlist="277"', 'audio-playlist="1"'),
        ('superclocks-per-second="282240000"', 'superclocks-per-second="0"'),
        ('superclocks-per-second="282240000"', f'superclocks-per-second="{"9" * 400}"'),
        ('npm="120"', 'npm="nan"'),
        ('npm="120"', 'npm="0"'),
        ('version="7002" name=', 'version="9000" name='),
        ('version="7002" name=', 'version="3002" name='),
    ],
)  # fmt: skip
def test_impossible_values_get_one_line(file: Path, old: str, new: str) -> None:
    refusal(edited(file, (old, new)))


def test_unknown_versions_are_named(file: Path) -> None:
    text = refusal(edited(file, ('version="7002" name=', 'version="8000" name=')))
    assert "8000" in text
    assert "7002 and 7003" in text


@pytest.mark.parametrize("what", ["nothing there", "folder without session", "other file"])
def test_paths_that_are_no_session(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "folder without session":
        path.mkdir()
    elif what == "other file":
        path.write_text("x")
    refusal(path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_session_that_may_not_be_read(file: Path, what: str, as_user: None) -> None:
    path = file if what == "file" else file.parent
    path.chmod(0)
    assert "Permission denied" in refusal(file)
    path.chmod(0o700)
