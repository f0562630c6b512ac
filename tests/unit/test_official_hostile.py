"""Public checkpoints that are damaged or mean harm: each is refused in one line, nothing runs."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import random
import resource
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import CheckpointError
from models.official import read_official
from tests.unit.checkpoint_workshop import (
    named_by_hash,
    package_of,
    reference,
    torchaudio_names,
    version_2,
    with_pickle,
    write_hub,
    write_th,
)

TINY = {"channels": 4, "depth": 2, "dconv_mode": 0, "resample": False}


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def tiny_package() -> dict[str, Any]:
    return package_of(reference("demucs", **TINY))


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_official(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Path]:
    """A file that appears where code ran."""
    path = tmp_path / "witness"
    yield path
    assert not path.exists()


GADGETS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda w: Call(os.system, f"touch {w}"),
    "eval": lambda w: Call(eval, f"open({str(w)!r}, 'w')"),
    "exec": lambda w: Call(exec, f"open({str(w)!r}, 'w')"),
    "getattr": lambda w: Call(getattr, w, "touch"),
    "touch": lambda w: Call(Path.touch, w),
    "import": lambda w: Call(__import__, "antigravity"),
    "torch.load": lambda w: Call(torch.load, str(w)),
    "torch.hub": lambda w: Call(torch.hub.load, "x/y", "z"),
    "bytearray": lambda w: Call(bytearray, 10**10),
    "torch.Tensor": lambda w: Call(torch.Tensor, 10**10),
    "counter": lambda w: Call(__import__("collections").Counter, "a"),
    "other class": lambda w: torch.nn.Linear,
    "module": lambda w: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("place", ["klass", "kwargs", "state", "metrics", "whole"])
def test_code(tmp_path: Path, witness: Path, gadget: str, place: str) -> None:
    harm = GADGETS[gadget](witness)
    package: Any = tiny_package()
    if place == "klass":
        package["klass"] = harm
    elif place == "whole":
        package = harm
    else:
        package[place] = {**package[place], "harm": harm}
    refused(write_th(tmp_path, package), "which no Demucs checkpoint that is known needs; nothing")


@pytest.mark.parametrize("gadget", ["os.system", "eval", "touch", "bytearray"])
def test_code_in_the_old_layout(tmp_path: Path, witness: Path, gadget: str) -> None:
    state = {**version_2()[1], "harm": GADGETS[gadget](witness)}
    refused(write_th(tmp_path, state, old=True), "which no Demucs checkpoint that is known needs")


def test_code_by_newer_instructions(tmp_path: Path, witness: Path) -> None:
    """STACK_GLOBAL names a function without GLOBAL; INST and OBJ call one without REDUCE."""
    path = write_th(tmp_path, tiny_package())
    pickles = {
        "STACK_GLOBAL": b"\x80\x02X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93.",
        "INST": b"\x80\x02(X\x04\x00\x00\x00trueiposix\nsystem\n.",
        "OBJ": b"\x80\x02(cposix\nsystem\nX\x04\x00\x00\x00trueo.",
        "PROTO": b"\x80\x04}.",
        "EXT1": b"\x80\x02\x82\x01.",
    }
    for name, content in pickles.items():
        # NB: INST and OBJ name what they call before the instruction itself is judged
        changed = with_pickle(path, lambda _, content=content: content)
        refused(changed, rf"instruction {name}|posix.system")


def test_network_classes_are_never_called(tmp_path: Path) -> None:
    """Neither as a function nor as a constructor of an instance with a state."""
    path = write_th(tmp_path, tiny_package())
    for rest in (b")R.", b")\x81.", b")R}b.", b"}b."):
        content = b"\x80\x02cdemucs.demucs\nDemucs\n" + rest
        refused(with_pickle(path, lambda _, content=content: content), "damaged or not a Demucs")


HARMS: dict[str, tuple[Any, str]] = {
    "huge fraction": (Call(Fraction, "1e10000000"), "damaged or not .*fraction"),
    "long fraction": (Call(Fraction, "1" * 50_000), "damaged or not .*fraction"),
    "fraction over 0": (Call(Fraction, "1/0"), "damaged or not .*fraction"),
    "numpy objects": (np.dtype("O"), "damaged or not .*number format"),
    "numpy records": (np.dtype("f8,f8"), "damaged or not .*number format"),
    "numpy array": (np.zeros(3), "refers to 'numpy"),
    "slow codec": (Call(codecs.encode, "\u4e00\u4e01" * 5000, "PunyCode"), "text encoding"),
    "long text": ("x" * 1_000_000, "text that is too long"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harmful_values(tmp_path: Path, harm: str) -> None:
    value, message = HARMS[harm]
    refused(write_th(tmp_path, {**tiny_package(), "metrics": value}), message)


def view(numel: int, *sizes: int) -> Call:
    """A tensor that claims more than its storage of so many numbers holds."""
    storage = torch.zeros(numel, dtype=torch.half).storage()
    strides = tuple(torch.empty(sizes, device="meta").stride())
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, 0, sizes, strides, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("numel", [0, 4])
def test_views_beyond_their_storage(tmp_path: Path, numel: int) -> None:
    package = tiny_package()
    shape = package["state"]["encoder.1.0.weight"].shape
    package["state"]["encoder.1.0.weight"] = view(numel, *shape)
    refused(write_th(tmp_path, package), "damaged|more numbers than its own size")
    _, state = version_2()
    state["lstm.linear.weight"] = view(numel, *state["lstm.linear.weight"].shape)  # type: ignore
    refused(write_th(tmp_path, state, old=True), "damaged|more numbers than its own size")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_huge_tensors(tmp_path: Path, old: bool) -> None:
    _, state = version_2()
    for name in ("lstm.linear.weight", "beside"):
        changed = {**state, name: view(1, 2**20, 2**20)}
        refused(
            write_th(tmp_path, changed, old=old),
            "instead of|too many|more numbers than its own size",
        )


def test_huge_storage_that_nobody_looks_at(tmp_path: Path) -> None:
    """In the old layout memory would be taken for it."""
    state = OrderedDict(version_2()[1])
    state.beside = torch.zeros(12345)  # type: ignore[attr-defined]
    refused(write_th(tmp_path, state, old=True), "refers to .* tensors but holds")


def test_huge_storage_behind_a_small_tensor(tmp_path: Path) -> None:
    """Of the old layout; four numbers claim to be part of a trillion."""
    path = write_th(tmp_path, version_2()[1], old=True)
    claim = b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"N"
    path.write_bytes(path.read_bytes().replace(b"K\x04N", claim, 1))
    refused(named_by_hash(path), "more numbers than its own size")


def test_deep_and_endless_values(tmp_path: Path) -> None:
    path = write_th(tmp_path, tiny_package())
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    refused(with_pickle(path, lambda _: deep), "holds no dictionary")
    marks = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    refused(with_pickle(path, lambda _: marks), "holds no dictionary")
    package = tiny_package()
    endless: list[Any] = []
    endless.append(endless)
    package["kwargs"]["multi_freqs"] = endless
    refused(write_th(tmp_path, package), "cannot be built")
    laughs: list[Any] = ["ha"]
    for _ in range(50):
        laughs = [laughs, laughs]
    package["kwargs"]["multi_freqs"] = laughs
    refused(write_th(tmp_path, package), "cannot be built")
    package["metrics"] = laughs
    del package["kwargs"]["multi_freqs"]
    assert read_official(write_th(tmp_path, package)).architecture == "demucs"


ABSURD: list[dict[str, Any]] = [
    {"depth": 10**9},
    {"depth": -1},
    {"depth": "6"},
    {"depth": 10**30},
    {"channels": -1},
    {"channels": 0},
    {"channels": 10**7},
    {"growth": float("nan")},
    {"growth": float("inf")},
    {"growth": 1e9},
    {"kernel_size": 10**11},
    {"stride": 0},
    {"context": -5},
    {"dconv_mode": 1, "dconv_depth": 10**9},
    {"lstm_layers": 10**9},
    {"audio_channels": 10**9},
    {"samplerate": 0},
    {"samplerate": float("nan")},
    {"segment": 0},
    {"segment": -1},
    {"segment": "long"},
    {"segment": 1e11},
    {"sources": [f"s{i}" for i in range(10**6)]},
    {"sources": []},
    {"sources": None},
    {"sources": "drums"},
    {"sources": ["../../etc/passwd"]},
    {"sources": ["a/b"]},
    {"sources": ["a\nb"]},
    {"sources": ["a\x1b[31m"]},
    {"sources": [""]},
    {"sources": ["x" * 200]},
    {"sources": ["a", "a"]},
    {"sources": [1]},
]


@pytest.mark.parametrize("change", ABSURD, ids=lambda change: str(change)[:40])
def test_absurd_arguments(tmp_path: Path, change: dict[str, Any]) -> None:
    package = tiny_package()
    package["kwargs"] = {**package["kwargs"], **change}
    message = "cannot be built|not what its arguments describe|description that is too large"
    refused(write_th(tmp_path, package), message)


@pytest.mark.parametrize("architecture", ["hdemucs", "htdemucs"])
@pytest.mark.parametrize(
    "change",
    [
        {"nfft": 2**40},
        {"nfft": -4096},
        {"channels": 10**8},
        {"depth": 10**6},
        {"multi_freqs": [0.1] * 90},
        {"dconv_comp": 0},
        {"norm_groups": 0},
        {"freq_emb": float("nan")},
    ],
    ids=str,
)
def test_absurd_hybrids(tmp_path: Path, architecture: str, change: dict[str, Any]) -> None:
    package = package_of(reference(architecture))
    package["kwargs"] = {**package["kwargs"], **change}
    refused(write_th(tmp_path, package), "cannot be built|not what its arguments describe")


def changed_state(**changes: torch.Tensor | None) -> dict[str, Any]:
    package = tiny_package()
    state = package["state"]
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    package["state"] = {name: value for name, value in state.items() if value is not None}
    return package


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"decoder__0__0__bias": None}, "lacks 'decoder.0.0.bias'"),
    "surplus": ({"more": torch.zeros(3)}, "holds 'more' too many"),
    "wrong shape": ({"decoder__0__0__bias": torch.zeros(3).half()}, "as 3 instead of 16"),
    "double": ({"decoder__0__0__bias": torch.zeros(16).double()}, "refers to 'torch.Double"),
    "whole numbers": ({"decoder__0__0__bias": torch.zeros(16).long()}, "refers to 'torch.Long"),
    "NaN": ({"decoder__0__0__bias": torch.full((16,), torch.nan).half()}, "not finite, in dec"),
    "infinity": ({"decoder__0__0__bias": torch.full((16,), -torch.inf)}, "not finite, in dec"),
    "no tensor": ({"decoder__0__0__bias": [1.0]}, "more than weights"),
    "sparse": ({"more": torch.zeros(3).to_sparse()}, "which no Demucs"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", STATES)
def test_states_that_do_not_fit(tmp_path: Path, case: str) -> None:
    changes, message = STATES[case]
    refused(write_th(tmp_path, changed_state(**changes)), message)


def test_bare_states_that_do_not_fit(tmp_path: Path) -> None:
    _, state = version_2()
    without = {name: t for name, t in state.items() if name != "decoder.1.0.bias"}
    refused(write_th(tmp_path, without), "lacks 'decoder.1.0.bias'")
    refused(write_th(tmp_path, {**state, "more": torch.zeros(1)}), "holds 'more' too many")
    refused(write_th(tmp_path, {"a": torch.zeros(3)}), "not those of Demucs version 2")
    refused(write_th(tmp_path, {"encoder.0.0.weight": torch.zeros(3)}), "not those of Demucs")
    two = version_2(sources=["vocals", "rest"])[1]
    refused(write_th(tmp_path, two), "not four stems")
    scalars = {name: torch.zeros(()) for name in state}
    refused(write_th(tmp_path, scalars), "do not make a network|is not a Demucs checkpoint")
    audio = torchaudio_names(reference("hdemucs").state_dict())
    del audio["freq_emb.embedding.weight"]
    refused(write_th(tmp_path, audio), "do not make a network")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    network = io.BytesIO()
    torch.save(tiny_package(), network)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    cases = {
        b"": "is empty",
        b"hello, I am a text\n": "not a Demucs checkpoint of any known kind",
        gzip.compress(network.getvalue()): "version 1 of Demucs",
        archive.getvalue(): "not a Demucs checkpoint of any known kind",
        b"\x80": "neither a zip archive nor",
        b"\x80\x02}.": "neither a zip archive nor",
        b"PK\x03\x04": "damaged",
        struct.pack("<Q", 2) + b"{}": "no class in its metadata",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        refused(path, message)
    refused(tmp_path, "is not a file")
    refused(tmp_path / "nothing.th", "No such file")
    os.mkfifo(tmp_path / "pipe.th")
    refused(tmp_path / "pipe.th", "is not a file")


@pytest.mark.parametrize("kind", ["zip", "old", "hub"])
def test_cut_short(tmp_path: Path, kind: str) -> None:
    path = valid_file(tmp_path, kind)
    content = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        cut.write_bytes(content[: int(len(content) * share)])
        refused(cut, "damaged|cut short|not a|neither|than its own size")
    for missing in (1, 2, 8, 21, 22, 23, 64):
        cut.write_bytes(content[:-missing])
        refused(cut, "damaged|cut short|than its own size")


def test_wrong_hash(tmp_path: Path) -> None:
    path = write_th(tmp_path, tiny_package())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, r"not the file that its name tells \(SHA-256 .* get it again")
    assert read_official(named_by_hash(write_th(tmp_path, tiny_package(), "other"), "again"))


def test_zip_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    path = write_th(tmp_path, tiny_package())
    bomb = tmp_path / "bomb.th"

    def rewritten(change: Callable[[zipfile.ZipFile], None], **options: Any) -> Path:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", **options) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
            change(new)
        return bomb

    zeros = bytes(50_000_000)
    deflated = zipfile.ZIP_DEFLATED
    refused(rewritten(lambda z: z.writestr("a/data/999", zeros, deflated)), "is compressed")
    refused(rewritten(lambda z: None, compression=deflated), "is compressed")
    refused(rewritten(lambda z: z.writestr("a/constants.pkl", b"\x80\x02N.")), "program code")
    refused(rewritten(lambda z: z.writestr("b/data.pkl", b"\x80\x02N.")), "program code")
    refused(rewritten(lambda z: setattr(z, "comment", b"hello")), "torch.save does not write")
    many = [f"a/{i}" for i in range(30_000)]
    refused(
        rewritten(lambda z: [z.writestr(name, b"") for name in many] and None),
        "torch.save does not write",
    )
    large = b"\x80\x02" + b"N0" * 6_000_000 + b"N."
    refused(with_pickle(path, lambda _: large), "description that is too large")


def test_the_old_layout_with_a_class(tmp_path: Path) -> None:
    """Before zip archives torch.save stored the source text of classes, and compared it."""
    refused(write_th(tmp_path, tiny_package(), old=True), "its network's program code")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"klass": "os.system"}, "is for 'os.system', which is not a network that is known"),
        ({"klass": "demucs.tasnet.ConvTasNet"}, "not a network that is known"),
        ({"args": "[1, 2"}, "not JSON"),
        ({"kwargs": "[" * 100_000}, "not JSON"),
        ({"kwargs": "[]"}, "not a list and a dictionary"),
        ({"kwargs": '{"sources": ["a"], "depth": 1e400}'}, "cannot be built"),
        ({"kwargs": '{"sources": ["a"], "depth": NaN}'}, "cannot be built"),
        ({"kwargs": '{"sources": ["a"], "segment": {"_type": "fraction"}}'}, "cannot be built"),
        (
            {
                "kwargs": '{"sources": ["a"], "segment":'
                ' {"_type": "fraction", "numerator": 1, "denominator": 0}}'
            },
            "cannot be built",
        ),
        ({"structure": "{}"}, "quantized"),
    ],
)
def test_hub_metadata(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    refused(write_hub(tmp_path, reference("demucs", **TINY), **metadata), message)


def valid_file(folder: Path, kind: str) -> Path:
    """A small valid file of a kind, under a name without a hash."""
    if kind == "hub":
        return write_hub(folder, reference("demucs", **TINY))
    if kind == "zip":
        return write_th(folder, tiny_package()).rename(folder / "model.th")
    state = version_2(channels=2, depth=2)[1]
    return write_th(folder, state, old=True).rename(folder / "model.th")


@pytest.mark.parametrize("kind", ["zip", "old", "hub"])
def test_mutations(tmp_path: Path, witness: Path, kind: str) -> None:
    """Whatever bytes are changed, the file loads or is refused; memory stays where it is."""
    path = valid_file(tmp_path, kind)
    content = path.read_bytes()
    # Half of the changes go where the file is described, the rest anywhere.
    start = content.find(b"\x80\x02}") if kind != "hub" else 0
    described = 3000
    dice = random.Random(kind)
    mutated = tmp_path / f"mutated{path.suffix}"
    read_official(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"loaded": 0, "refused": 0}
    for turn in range(200):
        changed = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 8))):
            room = (start, min(start + described, len(content))) if turn % 2 else (0, len(content))
            changed[dice.randrange(*room)] = dice.randrange(256)
        if turn % 20 == 0:
            place = dice.randrange(len(changed))
            del changed[place : place + dice.randrange(1, 100)]
        mutated.write_bytes(changed)
        try:
            read_official(mutated)
            outcomes["loaded"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} KiB"
