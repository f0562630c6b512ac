"""Public checkpoints in every format, read and run against the reference that wrote them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import demucs
import pytest
import torch

from models.adopt import adopt
from models.checkpoints import load_network, network_from_state, save_checkpoint
from models.errors import CheckpointError
from models.official import Bag, OfficialCheckpoint, read_bag, read_official
from tests.unit.checkpoint_workshop import (
    STEMS,
    package_of,
    reference,
    torchaudio_names,
    version_2,
    with_pickle,
    write_hub,
    write_th,
)

ARCHITECTURES = ["demucs", "hdemucs", "htdemucs"]


def assert_same_output(network: torch.nn.Module, other: torch.nn.Module, frames: int) -> None:
    torch.manual_seed(1)
    mixture = torch.randn(1, 2, frames)
    with torch.inference_mode():
        ours, theirs = network(mixture), other(mixture)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def assert_is(checkpoint: OfficialCheckpoint, network: torch.nn.Module, frames: int) -> None:
    """What was read gives the output of what was written; weights may have been halved."""
    halved = {t.dtype for t in checkpoint.state.values()} == {torch.float16}
    if halved:
        network.load_state_dict({k: t.half().float() for k, t in network.state_dict().items()})
    ours = network_from_state(checkpoint.config, checkpoint.state)
    assert not ours.training
    assert not any(t.is_meta for t in (*ours.parameters(), *ours.buffers()))
    assert all(t.dtype == torch.float32 for t in ours.parameters())
    assert_same_output(ours, network, frames)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_th(tmp_path: Path, architecture: str) -> None:
    network = reference(architecture)
    path = write_th(tmp_path, package_of(network))
    checkpoint = read_official(path)
    assert (checkpoint.kind, checkpoint.architecture) == ("th", architecture)
    assert checkpoint.config.sources == tuple(STEMS)
    assert checkpoint.sha256.startswith(path.stem[-8:])
    assert_is(checkpoint, network, 30000)


def test_segment_is_exact(tmp_path: Path) -> None:
    path = write_th(tmp_path, package_of(reference("htdemucs")))
    assert read_official(path).config.segment_frames == int(44100 * Fraction(39, 5)) == 343980


def test_names_by_position(tmp_path: Path) -> None:
    """The first argument of the reference's networks is the list of stems."""
    package = package_of(reference("demucs"))
    package["args"] = (package["kwargs"].pop("sources"),)
    assert read_official(write_th(tmp_path, package)).config.sources == tuple(STEMS)


def test_former_class_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files name the hybrid network ``demucs.wdemucs.WDemucs``."""
    import demucs.wdemucs

    klass = type("WDemucs", (), {"__module__": "demucs.wdemucs"})
    monkeypatch.setattr(demucs.wdemucs, "WDemucs", klass)
    package = package_of(reference("hdemucs")) | {"klass": klass}
    path = write_th(tmp_path, package)
    assert b"demucs.wdemucs" in path.read_bytes()
    assert read_official(path).architecture == "hdemucs"


def test_both_spellings_of_numpy(tmp_path: Path) -> None:
    path = write_th(tmp_path, package_of(reference("demucs")))
    for one, other in (("_core", "core"), ("core", "_core")):
        path = with_pickle(
            path,
            lambda c, one=one, other=other: c.replace(
                f"cnumpy.{one}.multiarray".encode(), f"cnumpy.{other}.multiarray".encode()
            ),
        )
        assert f"numpy.{other}.multiarray".encode() in path.read_bytes()
        assert read_official(path).architecture == "demucs"
        path = path.rename(tmp_path / f"{other}.th")


def test_arguments_that_newer_versions_lack(tmp_path: Path) -> None:
    """The reference drops them with a warning."""
    package = package_of(reference("demucs"))
    package["kwargs"]["not_any_more"] = 3
    assert read_official(write_th(tmp_path, package)).architecture == "demucs"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("changes", [{}, {"channels": 6, "lstm_layers": 1, "context": 2}])
def test_version_2(tmp_path: Path, old: bool, changes: dict[str, Any]) -> None:
    network, state = version_2(**changes)
    checkpoint = read_official(write_th(tmp_path, state, "demucs", old=old))
    assert checkpoint.kind == "state-dict"
    assert {t.dtype for t in checkpoint.state.values()} == {torch.float32}
    assert_is(checkpoint, network, 8000)


def test_torchaudio(tmp_path: Path) -> None:
    network = reference("hdemucs")
    path = tmp_path / "hdemucs_high_trained.pt"
    torch.save(torchaudio_names(network.state_dict()), path)
    checkpoint = read_official(path)
    assert (checkpoint.kind, checkpoint.architecture) == ("torchaudio", "hdemucs")
    assert checkpoint.config.segment_frames == 44 * 44100
    assert_is(checkpoint, network, 30000)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hub(tmp_path: Path, architecture: str) -> None:
    network = reference(architecture)
    checkpoint = read_official(write_hub(tmp_path, network))
    assert (checkpoint.kind, checkpoint.architecture) == ("hub", architecture)
    assert_is(checkpoint, network, 30000)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_becomes_a_model_of_ours(tmp_path: Path, architecture: str) -> None:
    """Read, given a card, written and loaded: half precision stays so on disk."""
    path = write_th(tmp_path, package_of(reference(architecture)))
    checkpoint = read_official(path)
    adopted = adopt(path, "mine")
    card = adopted.member_card(adopted.members[0], checkpoint)
    assert card.weights_dtype == "float16"
    card = save_checkpoint(card, checkpoint.state, tmp_path / "models")
    assert card.weights_path.stat().st_size < 1.1 * path.stat().st_size
    direct = network_from_state(checkpoint.config, checkpoint.state)
    loaded = load_network(card)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_numbers_are_mapped_not_copied(tmp_path: Path) -> None:
    """float32 weights of a zip archive stay in the file until they are used."""
    _, state = version_2()
    checkpoint = read_official(write_th(tmp_path, state))
    network = network_from_state(checkpoint.config, checkpoint.state)
    assert {t.data_ptr() for t in network.parameters()} == {
        t.data_ptr() for t in checkpoint.state.values()
    }


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("6b9c2ca1-f6dd1ba7.th", "quantized .*mdx_extra"),
        ("83fc094f.safetensors", "quantized"),
    ],
)
def test_quantized_by_name(tmp_path: Path, file: str, message: str) -> None:
    path = tmp_path / file
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=message):
        read_official(path)


def test_quantized_by_content(tmp_path: Path) -> None:
    network = reference("demucs")
    package = package_of(network)
    package["state"] = {"quantized": [], "__quantized": True}
    hub = write_hub(tmp_path, network, structure='{"_dict": [["__quantized", true]]}')
    for path in (write_th(tmp_path, package), hub):
        with pytest.raises(CheckpointError, match=f"{path.name}.* quantized"):
            read_official(path)


BAGS = Path(demucs.__file__).parent / "remote"


@pytest.mark.parametrize("path", sorted(BAGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_bags(path: Path) -> None:
    bag = read_bag(path)
    assert all(len(signature) == 8 for signature in bag.members)
    assert bag.weights is None or len(bag.weights) == len(bag.members)


def test_bag_in_full(tmp_path: Path) -> None:
    path = tmp_path / "bag.yaml"
    path.write_text("models: [a1, b2, a1]\nweights: [[1, 0], [0, 2.5], [1, 1]]\nsegment: 7.5\n")
    weights = ((1.0, 0.0), (0.0, 2.5), (1.0, 1.0))
    assert read_bag(path) == Bag(("a1", "b2", "a1"), weights, 7.5)
    path.write_text("models: [a1]")
    assert read_bag(path) == Bag(("a1",), None, None)


BAD_BAGS = {
    "": "must consist of",
    "[a1]": "must consist of",
    "models: [a1]\nextra: 1": "must consist of",
    "models: a1": "list of 1 to",
    "models: []": "list of 1 to",
    "models: [1]": "signatures",
    "models: ['../../etc/passwd']": "signatures",
    "models: ['a\\nb']": "signatures",
    f"models: [{', '.join(['a'] * 1000)}]": "list of 1 to",
    "models: [a]\nsegment: 0": "segment",
    "models: [a]\nsegment: .nan": "segment",
    "models: [a]\nsegment: true": "segment",
    f"models: [a]\nsegment: {'9' * 400}": "segment",
    "models: [a, b]\nweights: [[1]]": "one row for each",
    "models: [a, b]\nweights: [[1], [1, 2]]": "differ",
    "models: [a, b]\nweights: [[1], 2]": "each row",
    "models: [a]\nweights: [[.inf]]": "numbers from 0",
    "models: [a]\nweights: [[.nan]]": "numbers from 0",
    "models: [a]\nweights: [[-1]]": "numbers from 0",
    "models: [a]\nweights: [[yes]]": "numbers from 0",
    "models: [a, b]\nweights: [[1, 0], [1, 0]]": "adds up to 0",
    "models: !!python/object/apply:os.system ['touch witness']": "not YAML",
    "models: [a": "not YAML",
    "{[]: 1}": "not YAML",
    "\x00": "not YAML",
    "[" * 50_000: "nested too deep",
    "models: [a]\n" + "#" * 200_000: "too large",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]": "must consist of",
}


@pytest.mark.parametrize("text", BAD_BAGS, ids=lambda text: text[:40])
def test_bad_bags(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bag.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=BAD_BAGS[text]) as caught:
        read_bag(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_bag_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        read_bag(tmp_path / "bag.yaml")


def test_card_tells_another_architecture(tmp_path: Path) -> None:
    """Weights of one network do not load as another's."""
    path = write_th(tmp_path, package_of(reference("htdemucs")))
    checkpoint = read_official(path)
    adopted = adopt(path)
    card = adopted.member_card(adopted.members[0], checkpoint)
    card = save_checkpoint(card, checkpoint.state, tmp_path / "models")
    with pytest.raises(CheckpointError, match="the card of model"):
        load_network(replace(card, architecture="hdemucs"))
