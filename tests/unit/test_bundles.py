"""Loading bags and public files: who is read, with which weights and segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry
from models.adopt import effective_segment_frames
from models.cards import BagCard, BagMember, ModelCard, read_card, write_card
from models.errors import CheckpointError
from tests.unit.checkpoint_workshop import package_of, reference, write_hub, write_th
from tests.unit.test_registry import CONFIG, STEMS, change_card, make_model


@pytest.fixture(autouse=True)
def no_users_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(registry.FOLDERS_VARIABLE, raising=False)


ROWS = ((1.0, 0.0, 0.0, 0.5), (0.0, 1.0, 2.0, 0.5))


def make_bag(folder: Path, rows: Sequence[Sequence[float]] = ROWS, **changes: Any) -> Path:
    """A bag "both" of networks "m0", "m1" ...; changes as for :func:`change`."""
    members = []
    for index, row in enumerate(rows):
        make_model(folder, f"m{index}")
        members.append(BagMember(f"m{index}.json", tuple(row)))
        change_card(folder / f"m{index}.json", member_only=True)
    bag = BagCard(
        name="both",
        path=folder / "both.json",
        members=tuple(members),
        stems=STEMS,
        sample_rate_hz=CONFIG.sample_rate_hz,
        audio_channels=2,
        segment_frames=None,
        licence="CC0-1.0",
        description="for a test",
    )
    write_card(bag, bag.path)
    return change_card(bag.path, **changes)


def test_a_bag_is_listed_and_its_members_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = read_card(make_bag(tmp_path))
    assert isinstance(bag, BagCard)
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path))
    names = [card.name for card in registry.list_models()]
    assert "both" in names
    assert not {"m0", "m1"} & set(names)
    assert registry.find("both") == registry.find(tmp_path) == bag
    write_card(bag, bag.path)
    assert read_card(bag.path) == bag


def test_only_the_members_that_wanted_stems_need_are_read(tmp_path: Path) -> None:
    path = make_bag(tmp_path)
    assert [member.weights for member in registry.load(path).members] == list(ROWS)
    (tmp_path / "m1.safetensors").write_bytes(b"damaged")
    (member,) = registry.load(path, stems=["drums"]).members
    assert member.weights == ROWS[0]
    for stems in (None, ["bass"], ["drums", "vocals"]):
        with pytest.raises(CheckpointError, match=r"m1\.safetensors"):
            registry.load(path, stems=stems)


def test_a_bags_segment_overrides_its_members(tmp_path: Path) -> None:
    for segment_frames in (2000, 9000):
        path = make_bag(tmp_path, segment_frames=segment_frames)
        members = registry.load(path).members
        assert [member.segment_frames for member in members] == [segment_frames] * 2


@pytest.mark.parametrize(
    ("architecture", "override", "expected"),
    [
        ("hdemucs", 9000, 9000),
        ("hdemucs", 2000, 2000),
        ("htdemucs", 9000, 5000),
        ("htdemucs", 2000, 2000),
        ("htdemucs", None, 5000),
    ],
)
def test_the_transformers_segment_is_only_shortened(
    architecture: str, override: int | None, expected: int
) -> None:
    assert effective_segment_frames(architecture, 5000, override) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": []}, "members must be 1 to 32"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, 1]}] * 33}, "members must be"),
        ({"members": ["m0.json"]}, "list of dicts"),
        ({"members": [{"card": "../m0.json", "weights": [1, 1, 1, 1]}]}, "members.card"),
        ({"members": [{"card": "m0.th", "weights": [1, 1, 1, 1]}]}, "members.card"),
        ({"members": [{"card": "both.json", "weights": [1, 1, 1, 1]}]}, "the bag itself"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1]}]}, "weight for each of 4"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, -1]}]}, "finite and 0 or more"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, True]}]}, "finite and 0 or more"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, 10**400]}]}, "finite"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, float("nan")]}]}, "finite"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, float("inf")]}]}, "finite"),
        ({"members": [{"card": "m0.json", "weights": [1, 1, 1, 0]}]}, "stem vocals no weight"),
        ({"segment_frames": 0}, "segment_frames"),
        ({"segment_frames": True}, "segment_frames"),
        ({"format": 1}, "weights is missing"),
    ],
)
def test_bag_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = make_bag(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_members_must_agree_with_their_bag(tmp_path: Path) -> None:
    path = make_bag(tmp_path)
    change_card(tmp_path / "m1.json", sample_rate_hz=48000)
    with pytest.raises(CheckpointError, match="member m1 differs"):
        registry.load(path)


def test_no_bag_in_a_bag(tmp_path: Path) -> None:
    path = make_bag(tmp_path)
    (tmp_path / "m1.json").write_bytes(path.read_bytes())
    change_card(tmp_path / "m1.json", members=[{"card": "m0.json", "weights": [1, 1, 1, 1]}])
    with pytest.raises(CheckpointError, match="a bag itself"):
        registry.load(path)


def test_a_missing_member_is_one_line(tmp_path: Path) -> None:
    path = make_bag(tmp_path)
    (tmp_path / "m1.json").unlink()
    with pytest.raises(CheckpointError, match=r"m1\.json: No such file"):
        registry.load(path)


SMALL = {"depth": 2, "dconv_mode": 0, "lstm_layers": 0, "resample": False, "segment": 0.1}


def official(folder: Path, signature: str = "abcd1234", **changes: Any) -> Path:
    return write_th(folder, package_of(reference("demucs", **SMALL | changes)), signature)


def test_a_public_checkpoint_is_found_and_loaded_as_it_lies(tmp_path: Path) -> None:
    path = official(tmp_path)
    card = registry.find(path)
    assert isinstance(card, ModelCard)
    assert (card.name, card.stems, card.segment_frames) == ("abcd1234", STEMS, 4410)
    bundle = registry.load(path)
    assert bundle.card == card
    assert bundle.members[0].separate_segment(torch.zeros(1, 2, 100), [1]).shape == (1, 1, 2, 100)
    hub = write_hub(tmp_path, reference("demucs", **SMALL))
    torch.manual_seed(0)
    mixture = torch.randn(1, 2, 3000)
    ours, theirs = (registry.load(p).members[0].separate_segment(mixture) for p in (path, hub))
    assert torch.equal(ours, theirs)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((path.name, hub.name))


def test_a_public_bag_is_loaded_as_it_lies(tmp_path: Path) -> None:
    first, second = official(tmp_path, "aaaa"), official(tmp_path, "bbbb", depth=3)
    bag = tmp_path / "mine.yaml"
    bag.write_text("models: [aaaa, bbbb, aaaa]\nsegment: 0.2\n")
    card = registry.find(bag)
    assert isinstance(card, BagCard)
    assert (card.name, card.segment_frames) == ("mine", 8820)
    members = registry.load(bag).members
    # A network that is named twice runs once and counts twice.
    assert [member.weights for member in members] == [(2.0,) * 4, (1.0,) * 4]
    assert [member.segment_frames for member in members] == [8820, 8820]

    bag.write_text(
        "models: [aaaa, bbbb, aaaa]\nweights: [[1, 0, 0, 0], [0, 1, 1, 0], [2, 0, 0, 1]]"
    )
    members = registry.load(bag).members
    assert [member.weights for member in members] == [(3.0, 0, 0, 1.0), (0, 1.0, 1.0, 0)]
    first.with_name("aaaa-00000000.th").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 2 files of its member aaaa"):
        registry.load(bag)
    first.with_name("aaaa-00000000.th").unlink()
    second.write_bytes(b"damaged")
    (member,) = registry.load(bag, stems=["vocals", "drums"]).members
    assert member.weights == (3.0, 0, 0, 1.0)
    with pytest.raises(CheckpointError, match=second.name):
        registry.load(bag, stems=["bass"])
    second.unlink()
    with pytest.raises(CheckpointError, match="lacks the file of its member bbbb"):
        registry.find(bag)


def test_a_public_bags_members_must_agree(tmp_path: Path) -> None:
    official(tmp_path, "aaaa")
    official(tmp_path, "bbbb", sources=["vocals", "drums", "bass", "other"])
    bag = tmp_path / "mine.yaml"
    bag.write_text("models: [aaaa, bbbb]")
    with pytest.raises(CheckpointError, match="member bbbb differs"):
        registry.load(bag)
    bag.write_text("models: [aaaa]\nweights: [[1, 1, 1]]")
    assert isinstance(registry.find(bag), ModelCard)  # a bag of one needs no weights
    bag.write_text("models: [aaaa, bbbb]\nweights: [[1, 1, 1], [1, 1, 1]]")
    with pytest.raises(CheckpointError, match="one weight for each of 4 stems"):
        registry.find(bag)
