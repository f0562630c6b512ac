"""The song renderer: determinism, sums, levels, hold-outs, tune."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("pyloudnorm", reason="the songs need the extra `train`")
pytest.importorskip("scipy", reason="the songs need the extra `train`")

from models.train.songs import assets, voices
from models.train.songs.__main__ import main
from models.train.songs.arrangement import compose
from models.train.songs.assets import FONTS, KITS, SPLITS, VOICES, AssetsMissing
from models.train.songs.drum_synthesis import synthesise_drum
from models.train.songs.drums import ROLES
from models.train.songs.fonts import fluidsynth
from models.train.songs.guitars import render_plucked
from models.train.songs.mixing import balance, loudness_lufs, master
from models.train.songs.render import Song, SongRequest, choose_assets, render_song, store_song
from models.train.songs.score import SAMPLE_RATE_HZ, STEMS, Note, SungNote
from models.train.songs.singing import Singer, sing
from models.train.songs.styles import PROGRAMS, STAND_INS, STYLES, Style
from models.train.songs.synths import render_synth
from models.train.songs.voices import load_bank, world

SECONDS = 4.0
RMS = next(voice for voice in VOICES if voice.name == "flite-rms")


def _why_no_song() -> str:
    """Say what is missing to render shippable, unseen songs, or nothing."""
    try:
        assets.require("unseen", shippable=True)
        fluidsynth()
        world()
    except AssetsMissing as error:
        return str(error)
    return ""


needs_instruments = pytest.mark.skipif(bool(_why_no_song()), reason=_why_no_song())


@pytest.fixture(scope="session")
def voice_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a cache folder in which the one voice of these tests knows a few words."""
    folder = tmp_path_factory.mktemp("voices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(voices.WORDS, "english", "love day night you me fire rain sky fall stay no")
        load_bank(RMS, folder)
    return folder


@cache
def _song(cache_folder: Path, index: int) -> Song:
    return render_song(
        SongRequest("unseen", 3, index, SECONDS, shippable=True, full=True), cache_folder
    )


# Hold-outs


@pytest.mark.parametrize("shippable", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_splits_share_no_held_out_asset(split: assets.Split, shippable: bool) -> None:
    known: tuple[assets.Asset, ...] = (*FONTS, *KITS, *VOICES)
    held_out = {asset.name for asset in known if asset.held_out}
    drawn: set[str] = set()
    for index in range(300):
        request = SongRequest(split, 11, index, SECONDS, shippable)
        choice = choose_assets(request.generator(), split, shippable)
        fonts = {choice.bass_font.name, *(font.name for font in choice.other_fonts)}
        drawn |= fonts | {choice.kit.name, choice.voice.name, choice.second_voice.name}
        if split != "unseen":
            assert choice.style.name not in assets.HELD_OUT_STYLES
        if shippable:
            assert all(assets.named(name).shippable for name in drawn)
    assert drawn <= held_out if split == "unseen" else not drawn & held_out


@pytest.mark.parametrize(
    ("group", "held_out"),
    [
        (FONTS, {"MuseScore_General"}),
        (KITS, {"rumpf_kit_z01_h2", "BJA_Pacific", "VariBreaks"}),
        (VOICES, {"flite-rms", "festival-lp_diphone", "festival-czech_dita", "espeak-m3"}),
    ],
    ids=["fonts", "kits", "voices"],
)
def test_what_is_held_out(group: tuple[assets.Asset, ...], held_out: set[str]) -> None:
    assert {asset.name for asset in group if asset.held_out} == held_out


@pytest.mark.parametrize("group", [FONTS, KITS, VOICES], ids=["fonts", "kits", "voices"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_can_ship(split: assets.Split, group: tuple[assets.Asset, ...]) -> None:
    assert assets.allowed(group, split, shippable=True)


def test_a_limited_font_plays_only_its_own_programs() -> None:
    for font in FONTS:
        if font.own_programs is None:
            continue
        for index, style in enumerate(STYLES):
            score = compose(
                np.random.default_rng(index),
                style,
                20.0,
                low_voice=True,
                programs=font.own_programs,
                full=True,
            )
            played = [part for part in (score.bass, *score.others) if part.engine == "font"]
            assert {part.program for part in played} <= font.own_programs


def test_every_family_has_a_stand_in_or_an_own_program() -> None:
    own = [font.own_programs for font in FONTS if font.own_programs is not None]
    for family, programs in PROGRAMS.items():
        assert family in STAND_INS or all(set(programs) & limited for limited in own)


def test_missing_instruments_are_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = assets.Font("gone", Path("/nowhere/gone.sf2"), "some-soundfont", "MIT", "")
    monkeypatch.setattr(assets, "FONTS", (gone,))
    with pytest.raises(AssetsMissing, match=r"apt-get install.*some-soundfont") as caught:
        assets.require("train", shippable=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [["--songs", "0"], ["--seconds", "0"], ["--first", "-1"]])
def test_a_wrong_call_is_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "data"), "--split", "train", "--songs", "1", *wrong]
    assert main(options) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "data").exists()


# Composition


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_score_repeats_and_stays_in_time(style: Style) -> None:
    first, second = (
        compose(np.random.default_rng(5), style, 30.0, low_voice=False, full=True) for _ in range(2)
    )
    assert first == second
    assert first.hits and first.bass.notes and first.others and first.vocals[0].notes
    starts = [hit.start_seconds for hit in first.hits]
    starts += [n.start_seconds for part in (first.bass, *first.others) for n in part.notes]
    starts += [n.start_seconds for line in first.vocals for n in line.notes]
    assert min(starts) >= 0
    assert max(starts) < 30.0
    assert max(note.end_seconds for note in first.vocals[0].notes) <= 30.0
    assert {hit.role for hit in first.hits} <= set(ROLES)


# Sound without any installed instrument


def _pitch_hz(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound)))
    return float(np.argmax(spectrum)) * SAMPLE_RATE_HZ / (8 * len(sound))


@pytest.mark.parametrize("pitch", [28, 45, 64])
@pytest.mark.parametrize("instrument", ["plucked_bass", "subtractive_lead"])
def test_instruments_are_in_tune(instrument: str, pitch: int) -> None:
    note = Note(0.0, 2.0, pitch, 0.9)
    play = render_plucked if instrument == "plucked_bass" else render_synth
    sound = play(np.random.default_rng(4), instrument, [note], 2 * SAMPLE_RATE_HZ)
    expected_hz = 440 * 2 ** ((pitch - 69) / 12)
    # The strongest partial may be any: it has to be a multiple of the pitch.
    ratio = _pitch_hz(sound.mean(axis=0)) / expected_hz
    assert round(ratio) >= 1
    assert abs(1200 * np.log2(ratio / round(ratio))) < 25


@pytest.mark.parametrize("role", ROLES)
def test_synthesised_drums_are_finite_and_full(role: str) -> None:
    sound = synthesise_drum(np.random.default_rng(1), role, electronic=True)
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() == pytest.approx(1, abs=0.01)
    assert np.abs(sound[:, -1]).max() < 1e-3


def test_master_keeps_full_scale_and_the_sum_of_gains() -> None:
    rng = np.random.default_rng(8)
    frames = 3 * SAMPLE_RATE_HZ
    stems = {name: rng.normal(0, 0.3, (2, frames)).astype(np.float32) for name in STEMS}
    stems["drums"][:, ::9000] *= 12  # peaks that need the limiter
    mastered = master(np.random.default_rng(2), stems)
    mixture = np.sum([mastered[name] for name in STEMS], axis=0)
    assert max(np.abs(sound).max() for sound in (*mastered.values(), mixture)) <= 0.98
    gains = [mastered[name][0] / stems[name][0] for name in STEMS]
    for gain in gains[1:]:
        np.testing.assert_allclose(gain, gains[0], rtol=1e-5)


def test_balance_sets_vocals_against_the_rest() -> None:
    rng = np.random.default_rng(8)
    stems = {name: rng.normal(0, 0.1, (2, 5 * SAMPLE_RATE_HZ)).astype(np.float32) for name in STEMS}
    mixed = balance(stems, {"drums": 1.0, "bass": -3.0, "vocals": -2.5})
    rest = mixed["drums"] + mixed["bass"] + mixed["other"]
    assert loudness_lufs(mixed["vocals"]) - loudness_lufs(rest) == pytest.approx(-2.5, abs=0.05)


# Whole songs


@needs_instruments
def test_the_same_request_renders_the_same_song_in_another_process(
    voice_cache: Path, tmp_path: Path
) -> None:
    song = _song(voice_cache, 0)
    options = ["--out", str(tmp_path)]
    options += ["--split", "unseen", "--songs", "1", "--seed", "3", "--seconds", str(SECONDS)]
    options += ["--shippable", "--full", "--cache", str(voice_cache)]
    command = [sys.executable, "-m", "models.train.songs", *options]
    subprocess.run(command, check=True, capture_output=True)
    folder = tmp_path / "unseen" / "unseen-3-0000"
    assert json.loads((folder / "song.json").read_text()) == json.loads(
        json.dumps(song.description)
    )
    for name in STEMS:
        stored, rate_hz = soundfile.read(folder / f"{name}.flac", dtype="float32")
        assert rate_hz == SAMPLE_RATE_HZ
        # 16 bits a sample: rounded or cut to the next step, no more.
        np.testing.assert_allclose(stored.T, song.stems[name], atol=1.01 / 32768, rtol=0)
    before = (folder / "song.json").stat().st_mtime_ns
    assert main(options) == 0
    assert (folder / "song.json").stat().st_mtime_ns == before  # finished songs are kept


@needs_instruments
def test_a_song_fills_its_stems_within_full_scale(voice_cache: Path) -> None:
    song = _song(voice_cache, 0)
    assert tuple(song.stems) == STEMS
    for name, sound in song.stems.items():
        assert sound.dtype == np.float32
        assert sound.shape == (2, round(SECONDS * SAMPLE_RATE_HZ))
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() <= 0.98
        assert loudness_lufs(sound) > -45, name
    assert np.abs(song.mixture).max() <= 0.98
    exact = np.sum([song.stems[name].astype(np.float64) for name in STEMS], axis=0)
    np.testing.assert_allclose(song.mixture, exact, atol=1e-6, rtol=0)
    assert -20 < song.description["loudness_lufs"]["mixture"] < -9


@needs_instruments
def test_song_json_credits_every_asset(voice_cache: Path) -> None:
    description = _song(voice_cache, 0).description
    used = [name for names in description["assets"].values() for name in names]
    assert used
    for name in used:
        asset = assets.named(name)
        assert asset.held_out and asset.shippable
        assert any(asset.attribution in line for line in description["attribution"])


@needs_instruments
def test_a_failed_store_leaves_nothing(
    voice_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("soundfile.write", fail)
    with pytest.raises(OSError, match="disk full"):
        store_song(_song(voice_cache, 0), tmp_path / "song")
    assert list(tmp_path.iterdir()) == []


@needs_instruments
@pytest.mark.parametrize("pitch", [48, 55, 62])
def test_the_singer_is_in_tune(voice_cache: Path, pitch: int) -> None:
    singer = Singer(1.0, 0.0, 5.0, 0.0, 0.3, 3.0, 0.0, 0.0, 0.0, breaths=False)
    note = SungNote(0.5, 1.2, pitch, 0.9, 0, starts_phrase=True)
    bank = load_bank(RMS, voice_cache)
    sound = sing(np.random.default_rng(0), bank, singer, [note], 2 * SAMPLE_RATE_HZ)
    held = sound[round(0.8 * SAMPLE_RATE_HZ) : round(1.3 * SAMPLE_RATE_HZ)].astype(np.float64)
    f0, times = world().harvest(held, SAMPLE_RATE_HZ, f0_floor=80.0, f0_ceil=500.0)
    semitones = 69 + 12 * np.log2(np.median(f0[f0 > 0]) / 440)
    assert abs(semitones - pitch) < 0.2
    assert (f0 > 0).mean() > 0.8
    assert len(times) == len(f0)
