"""Weights are checked against their card; each way of being wrong has its own refusal."""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from models.cards import ModelCard
from models.checkpoints import build_network, load_network, network_from_state, save_checkpoint
from models.demucs import Demucs, DemucsConfig
from models.errors import CheckpointError

CONFIG = DemucsConfig(channels=4, depth=2, resample=False, segment_frames=4000)


def make_model(folder: Path, dtype: str = "float32") -> tuple[ModelCard, Demucs]:
    torch.manual_seed(0)
    network = Demucs(CONFIG).eval()
    card = ModelCard(
        name="mine",
        architecture="demucs",
        config=CONFIG.to_dict(),
        stems=CONFIG.sources,
        sample_rate_hz=CONFIG.sample_rate_hz,
        audio_channels=2,
        segment_frames=CONFIG.segment_frames,
        weights_path=folder / "unknown",
        weights_sha256="",
        weights_dtype=dtype,
        licence="CC0-1.0",
        description="for a test",
    )
    return save_checkpoint(card, network.state_dict(), folder), network


def put(card: ModelCard, content: bytes) -> ModelCard:
    """Replace the weights, hash and all: what remains wrong is what the test is about."""
    card.weights_path.write_bytes(content)
    return replace(card, weights_sha256=hashlib.sha256(content).hexdigest())


def state_of(card: ModelCard) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in load_network(card).state_dict().items()}


def refused(card: ModelCard, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(card)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_round_trip(tmp_path: Path, dtype: str, tolerance: float) -> None:
    card, network = make_model(tmp_path, dtype)
    loaded = load_network(card)
    assert not loaded.training
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, network.state_dict()[key], rtol=0, atol=tolerance)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    sizes = [
        make_model(tmp_path / dtype, dtype)[0].weights_path.stat().st_size
        for dtype in ("float32", "float16")
    ]
    assert 1.7 < sizes[0] / sizes[1] < 2


def test_saving_is_repeatable(tmp_path: Path) -> None:
    assert (
        make_model(tmp_path / "a")[0].weights_sha256 == make_model(tmp_path / "b")[0].weights_sha256
    )


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    content = bytearray(card.weights_path.read_bytes())
    content[-3] ^= 1
    card.weights_path.write_bytes(content)
    refused(card, "not the file that its card describes")


def test_missing_file(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    card.weights_path.unlink()
    refused(card, "cannot read the weights .*No such file")


def test_missing_tensor(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    state = state_of(card)
    del state["lstm.linear.bias"]
    refused(put(card, save(state)), "lacks 'lstm.linear.bias'")


def test_surplus_tensor(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    refused(
        put(card, save(state_of(card) | {"extra\n": torch.zeros(1)})), r"holds 'extra\\n' too many"
    )


def test_misshapen_tensor(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    state = state_of(card)
    state["lstm.linear.bias"] = torch.zeros(3)
    refused(put(card, save(state)), "lstm.linear.bias as 3 instead of 8")


def test_other_number_format(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    refused(
        put(card, save({k: t.half() for k, t in state_of(card).items()})),
        "stores .* torch.float16, not as torch.float32",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    card, _ = make_model(tmp_path)
    state = state_of(card)
    state["encoder.0.0.weight"].view(-1)[5] = value
    refused(put(card, save(state)), "not finite, in encoder.0.0.weight")


def test_larger_than_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.checkpoints.MAX_HEADER_BYTES", 10_000)
    card, _ = make_model(tmp_path)
    refused(put(card, card.weights_path.read_bytes() + bytes(20_000)), "larger than the network")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("kind", ["torch", "bare"])
def test_pickles_are_refused_unopened(tmp_path: Path, kind: str) -> None:
    card, _ = make_model(tmp_path)
    witness = tmp_path / "witness"
    if kind == "torch":
        torch.save({"klass": Harmful(witness)}, card.weights_path)
        content = card.weights_path.read_bytes()
    else:
        content = pickle.dumps(Harmful(witness))
    refused(put(card, content), "pickled checkpoint, which could run any code")
    assert not witness.exists()


def header(content: bytes) -> dict[str, Any]:
    (size,) = struct.unpack("<Q", content[:8])
    values: dict[str, Any] = json.loads(content[8 : 8 + size])
    return values


def with_header(content: bytes, values: Any) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "not a safetensors file"),
    "text": (lambda c: b"hello, this is not a model\n", "not a safetensors file"),
    "cut in the header": (lambda c: c[:50], "cut short"),
    "cut in the data": (lambda c: c[:-10], "damaged"),
    "more data": (lambda c: c + bytes(10), "damaged"),
    "huge header": (lambda c: struct.pack("<Q", 2**62) + c[8:], "cut short"),
    "header is a list": (lambda c: with_header(c, [1, 2]), "not a safetensors file"),
    "header is deep": (
        lambda c: struct.pack("<Q", 90_000) + b"[" * 90_000,
        "not a safetensors file",
    ),
    "no shape": (lambda c: with_header(c, {"x": {"dtype": "F32"}}), "not a safetensors file"),
    "negative shape": (
        lambda c: with_header(c, header(c) | {"lstm.linear.bias": {"dtype": "F32", "shape": [-8]}}),
        "safetensors file|instead of",
    ),
    "overlapping": (
        lambda c: with_header(
            c,
            header(c)
            | {
                "lstm.linear.bias": header(c)["lstm.linear.bias"] | {"data_offsets": [0, 32]},
            },
        ),
        "damaged",
    ),
    "beyond the end": (
        lambda c: with_header(
            c,
            header(c)
            | {
                "lstm.linear.bias": header(c)["lstm.linear.bias"]
                | {"data_offsets": [10**15, 10**15 + 32]},
            },
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    card, _ = make_model(tmp_path)
    spoil, message = DAMAGES[damage]
    refused(put(card, spoil(card.weights_path.read_bytes())), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10**9}, "depth"),
        ({"depth": "2"}, "wrong"),
        ({"channels": 10**6}, "parameters"),
        ({"channels": 10**30}, "wrong"),
        ({"lstm_layers": 10**9}, "wrong"),
        ({"growth": float("inf")}, "wrong"),
        ({"kernel_size": 10**9, "stride": 1}, "parameters"),
        ({"unheard_of": 1}, "wrong"),
        ({"sources": ["only"]}, "contradicts"),
        ({"sample_rate_hz": 48000}, "contradicts"),
    ],
)
def test_impossible_configs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    card, _ = make_model(tmp_path)
    refused(replace(card, config={**card.config, **change}), message)


def test_unknown_architecture(tmp_path: Path) -> None:
    card, _ = make_model(tmp_path)
    refused(replace(card, architecture="os.system"), "does not know")


PEAK = """
import pathlib, sys
import torch
from models.cards import read_card
from models.checkpoints import load_network

def kib(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

load_network(read_card(pathlib.Path(sys.argv[1])))  # whatever is loaded once only
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
network = load_network(read_card(pathlib.Path(sys.argv[2])))
weights = sum(p.numel() * 4 for p in network.parameters()) / 1024
print((kib("VmHWM") - before) / weights, (kib("VmRSS") - before) / weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_loading_takes_the_network_and_one_tensor(tmp_path: Path, dtype: str) -> None:
    config = DemucsConfig(channels=20, depth=6, lstm_layers=2, resample=False)
    small, _ = make_model(tmp_path / "small", dtype)
    card = replace(small, config=config.to_dict(), segment_frames=config.segment_frames)
    save_checkpoint(card, build_network(card).state_dict(), tmp_path / "large")
    cards = [str(tmp_path / size / "mine.json") for size in ("small", "large")]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *cards],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    peak, after = map(float, result.stdout.split())
    assert 0.9 < after < 1.1
    assert peak < 1.25, peak


def test_nothing_is_left_of_a_checkpoint_that_the_disk_did_not_take(tmp_path: Path) -> None:
    card, network = make_model(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    state = network.state_dict()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(card, state, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_buffers_that_are_not_stored_are_made(tmp_path: Path) -> None:
    """Windows and filters are computed, not left without memory."""
    config = replace(CONFIG, resample=True)
    torch.manual_seed(0)
    network = Demucs(config).eval()
    loaded = network_from_state(config, network.state_dict())
    mixture = torch.randn(1, 2, 5000)
    with torch.inference_mode():
        assert torch.equal(loaded(mixture), network(mixture))
