"""The user's folder of models: coming, going, a full disk, and what was measured."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry, store
from models.cards import BagCard, ModelCard, read_card
from models.errors import CheckpointError, ModelError, UnknownModel
from models.speeds import SPEEDS_NAME
from tests.unit.checkpoint_workshop import STEMS, package_of, reference, write_hub, write_th

SMALL = {"depth": 2, "dconv_mode": 0, "lstm_layers": 0, "resample": False, "segment": 0.1}


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is not there yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path / "users"))
    return tmp_path / "users"


def official(folder: Path, signature: str = "abcd1234", **changes: Any) -> Path:
    return write_th(folder, package_of(reference("demucs", **SMALL | changes)), signature)


def bag_of(folder: Path, name: str, text: str) -> Path:
    for signature in ("aaaa", "bbbb", "cccc"):
        if not list(folder.glob(f"{signature}-*.th")):
            official(folder, signature, channels={"aaaa": 4, "bbbb": 5, "cccc": 6}[signature])
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def listed() -> set[str]:
    return {card.name for card in registry.list_models()} - {registry.DEFAULT_MODEL}


def test_a_checkpoint_becomes_a_model(tmp_path: Path, users: Path) -> None:
    path = official(tmp_path)
    card = store.install(path, "mine")
    assert isinstance(card, ModelCard)
    assert card == registry.find("mine") == read_card(users / "mine.json")
    assert names(users) == ["mine.json", "mine.safetensors"]
    assert card.licence == "LicenseRef-unknown"
    assert card.training["file"] == path.name
    assert store.size_bytes(card) == sum(file.stat().st_size for file in store.files_of(card))
    torch.manual_seed(0)
    mixture = torch.randn(1, 2, 2000)
    ours, direct = (registry.load(x).members[0].separate_segment(mixture) for x in ("mine", path))
    assert torch.equal(ours, direct)


@pytest.mark.parametrize("kind", ["th", "hub"])
def test_the_name_is_the_files_own(tmp_path: Path, kind: str) -> None:
    path = official(tmp_path)
    if kind == "hub":
        path = write_hub(tmp_path, reference("demucs", **SMALL))
    assert store.install(path).name == "abcd1234"


def test_a_bag_is_one_model(tmp_path: Path, users: Path) -> None:
    rows = "[[1, 0, 0, 0], [0, 1, 1, 1]]"
    card = store.install(
        bag_of(tmp_path, "two", f"models: [aaaa, bbbb]\nweights: {rows}\nsegment: 0.2")
    )
    assert isinstance(card, BagCard)
    assert card == registry.find("two")
    assert listed() == {"two"}
    assert names(users) == [
        "aaaa.json",
        "aaaa.safetensors",
        "bbbb.json",
        "bbbb.safetensors",
        "two.json",
    ]
    bundle = registry.load("two", stems=["vocals"])
    assert [member.weights for member in bundle.members] == [(0.0, 1.0, 1.0, 1.0)]
    assert [member.segment_frames for member in bundle.members] == [8820]
    assert store.size_bytes(card) == sum(path.stat().st_size for path in users.glob("[!.]*"))
    assert store.is_whole(card)


def test_a_bag_of_one_is_a_plain_model(tmp_path: Path, users: Path) -> None:
    card = store.install(bag_of(tmp_path, "one", "models: [aaaa]\nsegment: 0.3"))
    assert isinstance(card, ModelCard)
    assert (card.name, card.segment_frames) == ("one", 13230)
    assert names(users) == ["one.json", "one.safetensors"]


def test_bags_share_their_members(tmp_path: Path, users: Path) -> None:
    store.install(bag_of(tmp_path, "first", "models: [aaaa, bbbb]"))
    before = (users / "bbbb.safetensors").stat()
    store.install(bag_of(tmp_path, "second", "models: [bbbb, cccc]"))
    assert (users / "bbbb.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    store.install(next(tmp_path.glob("aaaa-*.th")))
    with pytest.raises(ModelError, match="aaaa is part of first"):
        store.remove("aaaa")
    assert listed() == {"first", "second", "aaaa"}
    assert store.remove("first") > 0
    # What the user asked for by itself stays, and what the other bag needs.
    assert names(users) == [
        f"{name}.{kind}" for name in ("aaaa", "bbbb", "cccc") for kind in ("json", "safetensors")
    ] + ["second.json"]
    store.remove("aaaa")
    registry.load("second")
    store.remove("second")
    assert names(users) == []


def test_again_changes_nothing_and_mends_what_is_damaged(tmp_path: Path, users: Path) -> None:
    path = official(tmp_path)
    card = store.install(path, "mine")
    before = card.weights_path.stat().st_mtime_ns
    assert store.install(path, "mine") == card
    assert card.weights_path.stat().st_mtime_ns == before
    for content in (b"damaged", None):
        card.weights_path.unlink()
        if content is not None:
            card.weights_path.write_bytes(content)
        assert not store.is_whole(card)
        assert store.install(path, "mine") == card
        assert store.is_whole(card)
    bag = bag_of(tmp_path, "two", "models: [aaaa, bbbb]")
    whole = store.install(bag)
    (users / "aaaa.safetensors").write_bytes(b"damaged")
    (users / "bbbb.json").unlink()
    assert not store.is_whole(whole)
    assert store.install(bag) == whole
    assert store.is_whole(whole)


def test_names_that_are_taken(tmp_path: Path, users: Path) -> None:
    path, other = official(tmp_path / "a"), official(tmp_path / "b", channels=8)
    store.install(path, "mine")
    for name in ("mine", registry.DEFAULT_MODEL):
        with pytest.raises(ModelError, match=f"{name} is there already.*--name"):
            store.install(other, name)
    bag = bag_of(tmp_path, "mine", "models: [aaaa, bbbb]")
    with pytest.raises(ModelError, match="is there already"):
        store.install(bag)
    assert names(users) == ["mine.json", "mine.safetensors"]
    for name in ("../up", "", "a b", ".hidden"):
        with pytest.raises(ModelError, match="cannot be a model's name"):
            store.install(other, name)
    # A listed model does not become another bag's member because the names are equal.
    store.install(other, "bbbb")
    with pytest.raises(ModelError, match="bbbb is there already"):
        store.install(bag_of(tmp_path, "two", "models: [aaaa, bbbb]"))
    assert listed() == {"mine", "bbbb"}


def test_a_model_of_ours_is_copied(tmp_path: Path, users: Path) -> None:
    bag = store.convert(bag_of(tmp_path, "two", "models: [aaaa, bbbb]"), tmp_path / "out")
    assert isinstance(bag, BagCard)
    assert bag.path == tmp_path / "out" / "two.json"
    assert not users.exists()
    card = store.install(bag.path)
    assert card == registry.find("two")
    assert card.path.parent == users
    single = store.install(tmp_path / "out" / "aaaa.json", "single")
    assert isinstance(single, ModelCard)
    assert not single.member_only
    assert listed() == {"two", "single"}
    registry.load("two")
    registry.load("single")
    (tmp_path / "out" / "aaaa.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        store.install(tmp_path / "out" / "aaaa.json", "other")
    assert listed() == {"two", "single"}


def test_convert_writes_only_models(tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = store.convert(official(tmp_path), out, "mine")
    assert sorted(path.name for path in out.iterdir()) == ["mine.json", "mine.safetensors"]
    assert registry.find(out) == card
    store.convert(official(tmp_path), out, "mine")
    with pytest.raises(ModelError, match="is there already"):
        store.convert(official(tmp_path / "b", channels=5), out, "mine")


def test_what_is_no_model_is_refused(tmp_path: Path, users: Path) -> None:
    (tmp_path / "text.th").write_text("hello")
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "short.yaml").write_text("models: [gone]")
    for name in ("text.th", "text.wav", "short.yaml", "absent.th"):
        with pytest.raises(ModelError, match=name) as caught:
            store.install(tmp_path / name)
        assert "\n" not in str(caught.value)
    # Readable, but with a segment that no card may have.
    with pytest.raises(CheckpointError, match="segment_frames"):
        store.install(official(tmp_path, segment=0.001))
    with pytest.raises(CheckpointError, match="differs from it"):
        bag = bag_of(tmp_path, "two", "models: [aaaa, bbbb, odd]")
        official(tmp_path, "odd", sources=STEMS[::-1])
        store.install(bag)
    assert listed() == set()
    assert not list(users.glob("*.part"))


def test_removing(tmp_path: Path, users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModel, match="no model 'mine'"):
        store.remove("mine")
    card = store.install(official(tmp_path), "mine")
    size_bytes = store.size_bytes(card)
    for name in ("yours", "../users/mine", ""):
        with pytest.raises(UnknownModel):
            store.remove(name)
    with pytest.raises(ModelError, match=r"lies in .*weights.* and stays"):
        store.remove(registry.DEFAULT_MODEL)
    store.convert(official(tmp_path), tmp_path / "second", "elsewhere")
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, f"{users}{os.pathsep}{tmp_path / 'second'}")
    with pytest.raises(ModelError, match="second, not in the user's own folder"):
        store.remove("elsewhere")
    assert store.remove("mine") == size_bytes
    assert names(users) == []
    # One whose card is damaged goes by its name.
    store.install(official(tmp_path), "mine")
    (users / "mine.json").write_text("{")
    store.remove("mine")
    assert names(users) == []


def test_a_model_that_is_removed_while_it_runs_runs_on(tmp_path: Path, users: Path) -> None:
    store.install(bag_of(tmp_path, "two", "models: [aaaa, bbbb]"))
    bundle = registry.load("two")
    torch.manual_seed(0)
    mixture = torch.randn(1, 2, 2000)
    before = [member.separate_segment(mixture) for member in bundle.members]
    store.remove("two")
    assert names(users) == []
    after = [member.separate_segment(mixture) for member in bundle.members]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_an_official_file_that_is_removed_while_it_runs_runs_on(tmp_path: Path) -> None:
    path = write_th(tmp_path, package_of(reference("demucs", **SMALL), half=False))
    member = registry.load(path).members[0]
    mixture = torch.ones(1, 2, 2000)
    before = member.separate_segment(mixture)
    path.unlink()
    assert torch.equal(member.separate_segment(mixture), before)


@contextmanager
def files_up_to(limit_bytes: int) -> Iterator[None]:
    """The system refuses to write more than this into a file, as it does when a disk is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of POSIX")
@pytest.mark.parametrize("limit_bytes", [50, 20_000])
def test_a_full_disk(tmp_path: Path, users: Path, limit_bytes: int) -> None:
    path = official(tmp_path, channels=32)
    bag = bag_of(tmp_path, "two", "models: [aaaa, bbbb]")
    with files_up_to(limit_bytes), pytest.raises(ModelError) as caught:
        store.install(path, "mine")
    assert str(caught.value).startswith(f"{users} has no room left")
    assert "\n" not in str(caught.value)
    assert names(users) == []
    store.install(path, "mine")
    size_bytes = (users / "mine.safetensors").stat().st_size
    assert size_bytes > limit_bytes
    with files_up_to(limit_bytes):
        if limit_bytes == 50:
            with pytest.raises(ModelError, match="no room left"):
                store.install(bag)
            assert names(users) == ["mine.json", "mine.safetensors"]
        store.record_speed("mine", 0.5, "cpu")
    assert store.speeds().keys() == ({"mine"} if limit_bytes > 50 else set())
    store.install(bag)
    assert listed() == {"mine", "two"}
    (users / "two.json").unlink()
    with files_up_to(50), pytest.raises(ModelError, match="no room left"):
        store.install(bag)
    assert not [name for name in names(users) if name.startswith("two")]


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, users: Path, as_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = official(tmp_path)
    users.mkdir()
    users.chmod(0o500)
    with pytest.raises(ModelError, match=f"cannot write {users}") as caught:
        store.install(path, "mine")
    assert "\n" not in str(caught.value)
    store.record_speed("mine", 0.5, "cpu")
    assert store.speeds() == {}


def test_speeds_are_kept(users: Path) -> None:
    assert store.speeds() == {}
    store.record_speed("one", 0.51239, "cpu")
    store.record_speed("two", 2, "cuda")
    store.record_speed("one", 0.25, "cpu")
    for nonsense in (float("nan"), float("inf"), 0.0, -1.0):
        store.record_speed("two", nonsense, "cpu")
    told = store.speeds()
    assert {name: entry["real_time_factor"] for name, entry in told.items()} == {
        "one": 0.25,
        "two": 2,
    }
    assert told["two"]["device"] == "cuda"
    assert len(told["two"]["date"]) == len("2025-01-01")
    assert listed() == set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"[" + b" " * 2_000_000 + b"]",
        b'{"one": 1, "two": {"real_time_factor": NaN, "device": "cpu", "date": "x"}}',
        b'{"one": {"real_time_factor": "1", "device": "cpu", "date": "x"}}',
        b'{"one": {"real_time_factor": true, "device": "cpu", "date": "x"}}',
        b'{"one": {"real_time_factor": 1, "date": "x"}}',
    ],
)
def test_damaged_speeds_are_passed_over(users: Path, content: bytes) -> None:
    users.mkdir()
    (users / SPEEDS_NAME).write_bytes(content)
    assert store.speeds() == {}
    store.record_speed("mine", 1.5, "cpu")
    assert json.loads((users / SPEEDS_NAME).read_text()).keys() == {"mine"}
