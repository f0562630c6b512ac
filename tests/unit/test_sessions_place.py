"""Placing stems, replacing and undoing them: what is written, and what never is."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bridge import sessions
from bridge.errors import SessionFormatError, SessionWriteError
from bridge.sessions.files import write_atomically
from tests.unit.session_workshop import (
    CLIP_FRAMES,
    STEMS,
    edited,
    example_session,
    files_in,
    placement,
)

SUPERCLOCKS_PER_FRAME = 282_240_000 // 48_000
FADES = (
    'fade-in-active="0" fade-out-active="0" scale-amplitude="1" id="351"',
    'fade-in-active="1" fade-out-active="1" scale-amplitude="0.5" id="351"',
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return example_session(tmp_path / "Song")


def place(file: Path, *, existing: str = "refuse", **where: int) -> sessions.PlacedStems:
    session = sessions.read(file)
    wanted = placement(session, **where)  # type: ignore[arg-type]
    return sessions.place(session, wanted, existing=existing)  # type: ignore[arg-type]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def root_of(file: Path) -> ET.Element:
    return ET.parse(file).getroot()


def find(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    assert found is not None, path
    return found


# What a placement writes


def test_stems_follow_their_track_and_the_original_is_muted(file: Path) -> None:
    placed = place(file)
    session = sessions.read(file)
    assert [t.name for t in session.tracks] == ["Mix", "Mix – vocals", "Mix – residual", "Guide"]
    assert [track.name for track in placed.tracks] == ["Mix – vocals", "Mix – residual"]
    mix, vocals, _, guide = session.tracks
    original, stem = mix.clips[0], vocals.clips[0]
    assert original.muted
    assert not stem.muted
    assert not guide.clips[0].muted
    assert (stem.position_frames, stem.start_frames, stem.length_frames) == (96_001, 0, CLIP_FRAMES)
    assert vocals.color == "#e4606d"
    assert stem.sources[0].path.parent == sessions.audio_folder(session)
    assert stem.channels == 2
    assert placed.warnings == ()


def test_all_ids_are_unique_and_below_the_counter(file: Path) -> None:
    place(file)
    root = root_of(file)
    ids = [int(e.get("id", "")) for e in root.iter() if e.get("id", "").isdecimal()]
    assert len(ids) == len(set(ids))
    assert max(ids) < int(root.get("id-counter", ""))


def test_orders_are_unique_and_count_up(file: Path) -> None:
    place(file)
    infos = root_of(file).iterfind("Routes/Route/PresentationInfo")
    assert sorted(int(info.get("order", "")) for info in infos) == [0, 1, 2, 3, 4]


def test_the_group_is_colored_and_shares_nothing(file: Path) -> None:
    placed = place(file)
    group = find(root_of(file), "RouteGroups/RouteGroup")
    assert group.get("name") == placed.group_name == "Mix – stems"
    assert group.get("rgba") == str(0x6F7FD0FF)
    assert group.get("routes", "").split() == [track.id for track in placed.tracks]
    for shared in ("gain", "mute", "solo", "select", "color"):
        assert group.get(shared) == "0", "one stem's button must not press those of all"


def test_the_sound_of_the_track_is_inherited(file: Path) -> None:
    edited(
        file,
        ('name="gaincontrol" id="236" flags="GainLike" value="1"',
         'name="gaincontrol" id="236" flags="GainLike" value="0.25"'),
        ('name="phase" id="244" flags="Toggle" value="0" phase-invert="00"',
         'name="phase" id="244" flags="Toggle" value="0" phase-invert="10"'),
        ('automation-id="gain" id="235" interpolation-style="Exponential" time-domain="AudioTime" '
         'state="Off"',
         'automation-id="gain" id="235" interpolation-style="Exponential" time-domain="AudioTime" '
         'state="Write"'),
        ('name="rec-enable" id="272" flags="Toggle,RealTime" value="0"',
         'name="rec-enable" id="272" flags="Toggle,RealTime" value="1"'),
    )  # fmt: skip
    place(file)
    stem = find(root_of(file), "Routes/Route[@name='Mix – vocals']")
    assert find(stem, ".//Controllable[@name='gaincontrol']").get("value") == "0.25"
    assert find(stem, "Controllable[@name='phase']").get("phase-invert") == "10"
    assert find(stem, ".//AutomationList[@automation-id='gain']").get("state") == "Play"
    assert find(stem, "Controllable[@name='rec-enable']").get("value") == "0"
    outputs = stem.findall("IO[@direction='Output']/Port")
    assert [port.get("name") for port in outputs] == [
        "Mix – vocals/audio_out 1",
        "Mix – vocals/audio_out 2",
    ]
    assert find(outputs[0], "Connection").get("other") == "Master/audio_in 1"
    assert stem.find("IO[@direction='Input']//Connection") is None


def test_gain_and_fades_of_the_region_are_inherited(file: Path) -> None:
    edited(file, FADES)
    place(file)
    region = find(root_of(file), "Playlists/Playlist[@name='Mix – vocals']/Region")
    assert region.get("scale-amplitude") == "0.5"
    assert region.get("fade-in-active") == region.get("fade-out-active") == "1"
    assert (
        find(region, "FadeIn/AutomationList/events").text
        == find(
            root_of(file), "Playlists/Playlist[@name='Mix']/Region/FadeIn/AutomationList/events"
        ).text
    )


def test_plugins_are_left_out_with_a_warning(file: Path) -> None:
    plugin = '<Processor id="9001" name="Big Reverb" active="1" type="lv2"/>\n      '
    edited(
        file,
        ('<Processor id="263" name="Polarity"', plugin + '<Processor id="263" name="Polarity"'),
    )
    placed = place(file)
    assert ["Big Reverb" in warning for warning in placed.warnings] == [True]
    route = find(root_of(file), "Routes/Route[@name='Mix – vocals']")
    assert route.find("Processor[@type='lv2']") is None
    original = find(root_of(file), "Routes/Route[@name='Mix']")
    assert original.find("Processor[@type='lv2']") is not None


def test_a_region_above_or_below_is_warned_about(file: Path) -> None:
    tree = ET.parse(file)
    playlist = find(tree.getroot(), "Playlists/Playlist[@name='Mix']")
    other = copy.deepcopy(playlist[0])
    other.attrib.update({"id": "99999", "name": "Take 2"})
    playlist.append(other)
    tree.write(file, encoding="UTF-8", xml_declaration=True)
    placed = place(file)
    assert ["'Take 2' overlaps" in warning for warning in placed.warnings] == [True]


def test_a_muted_track_is_warned_about(file: Path) -> None:
    edited(
        file,
        (
            'name="mute" id="242" flags="Toggle,RealTime" value="0"',
            'name="mute" id="242" flags="Toggle,RealTime" value="1"',
        ),
    )
    assert "is muted" in place(file).warnings[0]


def test_names_that_are_taken_get_a_number(file: Path) -> None:
    edited(file, ('name="Guide"', 'name="Mix – vocals"'), ('"Guide/', '"Mix – vocals/'))
    placed = place(file)
    assert placed.tracks[0].name == "Mix – vocals 2"


def test_reserved_names_are_safe_and_unique(file: Path) -> None:
    session = sessions.read(file)
    folder = sessions.audio_folder(session)
    first = sessions.reserve(session, ["a/b.wav", "a/b.wav", "Song.flac", "x" * 300 + ".wav"])
    second = sessions.reserve(session, ["a/b.wav"])
    names = [path.name for path in (*first, *second)]
    assert all(path.parent == folder for path in (*first, *second))
    assert len(set(names)) == len(names)
    assert names[:3] == ["a_b.wav", "a_b 2.wav", "Song 2.flac"]
    assert names[4] == "a_b 3.wav"
    assert len(names[3].encode()) <= 255


# A range


def test_a_range_splits_the_region_so_that_nothing_is_lost(file: Path) -> None:
    edited(file, FADES)
    place(file, start=100_003, frames=50_001)
    mix = sessions.read(file).track("Mix")
    before, muted, after = mix.clips
    assert (before.position_frames, before.length_frames) == (96_001, 100_003)
    assert (muted.position_frames, muted.length_frames) == (196_004, 50_001)
    assert after.end_frames == 96_001 + CLIP_FRAMES
    assert [before.muted, muted.muted, after.muted] == [False, True, False]
    assert muted.id == "351", "the muted part is still the user's region"
    for earlier, later in ((before, muted), (muted, after)):
        assert earlier.end_frames == later.position_frames
        assert earlier.start_frames + earlier.length_frames == later.start_frames
    assert len({clip.name for clip in mix.clips}) == 3
    regions = find(root_of(file), "Playlists/Playlist[@name='Mix']")
    fades = {
        region.get("id"): (region.get("fade-in-active"), region.get("fade-out-active"))
        for region in regions
    }
    assert fades == {before.id: ("1", "0"), muted.id: ("0", "0"), after.id: ("0", "1")}
    stem = sessions.read(file).track("Mix – vocals").clips[0]
    assert (stem.position_frames, stem.start_frames, stem.length_frames) == (196_004, 0, 50_001)


@pytest.mark.parametrize(("start", "frames"), [(10, 50_000), (50_000, CLIP_FRAMES - 50_010)])
def test_a_cut_through_a_fade_is_refused(file: Path, start: int, frames: int) -> None:
    edited(file, FADES)
    before = digest(file)
    with pytest.raises(SessionFormatError, match="cuts through the fade-"):
        place(file, start=start, frames=frames)
    assert digest(file) == before


@pytest.mark.parametrize(("start", "frames"), [(0, CLIP_FRAMES + 1), (CLIP_FRAMES, 1), (5, 0)])
def test_a_range_outside_the_clip_is_refused(file: Path, start: int, frames: int) -> None:
    with pytest.raises(SessionFormatError, match="choose a range within it"):
        place(file, start=start, frames=frames)


# Refusals


def test_a_session_that_changed_meanwhile_is_not_edited(file: Path) -> None:
    session = sessions.read(file)
    wanted = placement(session)
    edited(file, ('name="auto-play" value="0"', 'name="auto-play" value="1"'))
    before = digest(file)
    with pytest.raises(SessionFormatError, match="was changed"):
        sessions.place(session, wanted, existing="refuse")
    assert digest(file) == before
    stems = [clip.path for track in wanted.tracks for clip in track.clips]
    assert all(path.is_file() for path in stems), "the stems are kept"


def test_a_save_at_the_last_moment_is_not_overwritten(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone saves while the edit is being prepared: here, as Ardour's backup is written."""
    session = sessions.read(file)
    wanted = placement(session)
    saved = file.read_bytes().replace(b'name="auto-play" value="0"', b'name="auto-play" value="1"')

    def write_and_save(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.suffix == ".bak":
            file.write_bytes(saved)

    monkeypatch.setattr(sessions, "write_atomically", write_and_save)
    with pytest.raises(SessionFormatError, match="was changed"):
        sessions.place(session, wanted, existing="refuse")
    assert file.read_bytes() == saved
    assert sessions.placed(sessions.read(file)) == ()


def test_crash_data_of_ardour_is_not_overruled(file: Path) -> None:
    file.with_suffix(".pending").write_bytes(file.read_bytes())
    with pytest.raises(SessionFormatError, match="unsaved changes"):
        sessions.check_editable(sessions.read(file))


def test_a_full_disk_leaves_the_session_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(file)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    session = sessions.read(file)
    wanted = placement(session)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SessionWriteError, match="No space left") as caught:
        sessions.place(session, wanted, existing="refuse")
    assert caught.value.exit_code == 1
    assert digest(file) == before
    assert not [name for name in files_in(file.parent) if "tmp" in name]


def test_a_missing_stem_file_is_noticed(file: Path) -> None:
    session = sessions.read(file)
    wanted = placement(session)
    wanted.tracks[0].clips[0].path.unlink()
    with pytest.raises(SessionFormatError, match="missing"):
        sessions.place(session, wanted, existing="refuse")


# Undo, and placing again


def test_undo_gives_back_the_same_bytes_and_no_file_more(file: Path) -> None:
    files, before = files_in(file.parent), digest(file)
    place(file)
    assert digest(file) != before
    assert digest(file.with_name(file.name + ".bak")) == before
    session = sessions.undo(file.parent)
    assert session.sha256 == digest(file) == before
    assert files_in(file.parent) == files
    with pytest.raises(SessionFormatError, match="no rendered stems"):
        sessions.undo(file)


def test_placing_twice_is_refused_with_the_choice(file: Path) -> None:
    place(file)
    once = digest(file)
    with pytest.raises(SessionFormatError, match=r"--replace.*session undo"):
        place(file)
    assert digest(file) == once


def test_replacing_does_not_pile_up(file: Path) -> None:
    place(file)
    tracks = [track.name for track in sessions.read(file).tracks]
    placed = place(file, existing="replace")
    assert [track.name for track in sessions.read(file).tracks] == tracks
    assert set(placed.replaced) == {f"Mix – {stem}" for stem in STEMS}
    root = root_of(file)
    assert len(root.findall("RouteGroups/RouteGroup")) == 1
    listed = {source.get("name") for source in root.iterfind("Sources/Source")}
    assert len(listed) == 2 + len(STEMS)


def test_undo_of_a_replacement_gives_back_what_it_replaced(file: Path) -> None:
    files, original = files_in(file.parent), digest(file)
    place(file)
    first, first_files = digest(file), files_in(file.parent)
    place(file, existing="replace")
    sessions.undo(file)
    assert digest(file) == first
    assert {name for name in files_in(file.parent) if name.endswith(".wav")} == {
        name for name in first_files if name.endswith(".wav")
    }
    sessions.undo(file)
    assert digest(file) == original
    assert files_in(file.parent) == files


def test_audio_that_no_undo_can_reach_is_removed(file: Path) -> None:
    for _ in range(4):
        place(file, existing="replace")
    stems = [name for name in files_in(file.parent) if name.endswith(".wav")]
    assert len(stems) == 2 * len(STEMS), "the ones in the session, and those before them"
    assert [render.undoable for render in sessions.placed(sessions.read(file))][-1]
    sessions.undo(file)
    with pytest.raises(SessionFormatError, match="backup for this undo is no longer there"):
        sessions.undo(file)


def test_renders_of_several_clips_are_undone_one_by_one(file: Path) -> None:
    states = [digest(file)]
    for track in ("Mix", "Guide"):
        session = sessions.read(file)
        sessions.place(session, placement(session, track=track), existing="refuse")
        states.append(digest(file))
    assert [len(render.tracks) for render in sessions.placed(sessions.read(file))] == [2, 2]
    for expected in (states[1], states[0]):
        sessions.undo(file)
        assert digest(file) == expected


def test_undo_never_loses_later_edits(file: Path) -> None:
    before = digest(file)
    place(file)
    edited(file, ('name="auto-play" value="0"', 'name="auto-play" value="1"'))
    saved = digest(file)
    with pytest.raises(SessionFormatError, match=r"was saved since.*--snapshot"):
        sessions.undo(file)
    assert digest(file) == saved
    sessions.undo(file, later_edits="snapshot")
    assert digest(file) == before
    (snapshot,) = (path for path in file.parent.glob("*.ardour") if path != file)
    assert digest(snapshot) == saved
    stems = sessions.read(snapshot).track("Mix – vocals").clips[0].sources
    assert all(source.path.is_file() for source in stems), "the snapshot keeps its stems"


def test_a_backup_put_back_by_hand_counts_as_undone(file: Path) -> None:
    files, before = files_in(file.parent), digest(file)
    place(file)
    file.write_bytes(file.with_name(file.name + ".bak").read_bytes())
    sessions.undo(file)
    assert digest(file) == before
    assert files_in(file.parent) == files


def test_stems_used_by_another_snapshot_are_kept(file: Path) -> None:
    place(file)
    file.with_name("Other.ardour").write_bytes(file.read_bytes())
    sessions.undo(file)
    stem = sessions.read(file.with_name("Other.ardour")).track("Mix – vocals").clips[0]
    assert stem.sources[0].path.is_file()


def test_stems_deleted_in_the_daw_do_not_stand_in_the_way(file: Path) -> None:
    """With the stem tracks gone from the session, the clip can be rendered again."""
    place(file)
    root = ET.parse(file)
    for section, tag in (("Routes", "Route"), ("Playlists", "Playlist")):
        parent = find(root.getroot(), section)
        for element in parent.findall(tag):
            if " – " in element.get("name", ""):
                parent.remove(element)
    root.write(file, encoding="UTF-8", xml_declaration=True)
    place(file)
    assert len(sessions.read(file).tracks) == 4


def test_two_runs_cannot_edit_at_once(file: Path) -> None:
    first, second = sessions.read(file), sessions.read(file)
    sessions.place(first, placement(first), existing="refuse")
    with pytest.raises(SessionFormatError, match="was changed"):
        sessions.place(second, placement(second, track="Guide"), existing="refuse")


# Records from a stranger


@pytest.mark.parametrize("name", ["../outside.wav", "/etc/outside.wav", "C:\\x.wav", ""])
def test_records_that_name_files_elsewhere_are_refused(
    file: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside.wav"
    outside.write_bytes(b"mine")
    place(file)
    records = file.parent / "stembridge" / f"{file.stem}.json"
    content = json.loads(records.read_text())
    content["renders"][0]["files"] = [name]
    records.write_text(json.dumps(content))
    with pytest.raises(SessionFormatError, match="records of rendered stems are damaged"):
        sessions.undo(file)
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "[" * 100_000, "\0"])
def test_damaged_records_get_one_line(file: Path, text: str) -> None:
    records = file.parent / "stembridge" / f"{file.stem}.json"
    records.parent.mkdir()
    records.write_text(text)
    with pytest.raises(SessionFormatError) as caught:
        sessions.undo(file)
    assert "\n" not in str(caught.value)


def test_undo_only_ever_removes_audio(file: Path) -> None:
    place(file)
    precious = file.parent / "notes.txt"
    precious.write_text("mine")
    records = file.parent / "stembridge" / f"{file.stem}.json"
    content = json.loads(records.read_text())
    content["renders"][0]["files"] = ["notes.txt", file.name]
    records.write_text(json.dumps(content))
    sessions.undo(file)
    assert precious.exists()
    assert file.exists()


# Copies


def test_a_copy_is_whole_and_the_original_untouched(file: Path, tmp_path: Path) -> None:
    files, before = files_in(file.parent), digest(file)
    copied = sessions.copy(sessions.read(file), tmp_path / "Copy")
    assert digest(copied.path) == before
    assert copied.path.parent == tmp_path / "Copy"
    source = copied.track("Mix").clips[0].sources[0].path
    assert source.is_file()
    assert source.is_relative_to(tmp_path / "Copy")
    sessions.place(copied, placement(copied), existing="refuse")
    assert digest(file) == before
    assert files_in(file.parent) == files


def test_a_copy_can_be_undone_by_itself(file: Path, tmp_path: Path) -> None:
    before = digest(file)
    place(file)
    copied = sessions.copy(sessions.read(file), tmp_path / "Copy")
    assert sessions.undo(copied.path).sha256 == before
    assert digest(file) != before


def test_a_copy_leaves_out_exports_and_backups(file: Path, tmp_path: Path) -> None:
    for name in ("export", "peaks", "dead"):
        (file.parent / name).mkdir()
        (file.parent / name / "large").touch()
    shutil.copy2(file, file.with_name(file.name + ".bak"))
    sessions.copy(sessions.read(file), tmp_path / "Copy")
    assert {path.name for path in (tmp_path / "Copy").iterdir()} == {file.name, "interchange"}


@pytest.mark.parametrize("where", ["taken", "file", "inside"])
def test_a_copy_never_overwrites(file: Path, tmp_path: Path, where: str) -> None:
    destination = tmp_path / "Copy"
    if where == "taken":
        destination.mkdir()
        (destination / "mine").touch()
    elif where == "file":
        destination.touch()
    else:
        destination = file.parent / "interchange" / "Copy"
    with pytest.raises(SessionFormatError):
        sessions.copy(sessions.read(file), destination)
    assert not list(tmp_path.rglob("*.part"))


def test_a_copy_may_fill_an_empty_folder(file: Path, tmp_path: Path) -> None:
    (tmp_path / "Copy").mkdir()
    assert sessions.copy(sessions.read(file), tmp_path / "Copy").tracks
