"""A device with too little memory: smaller pieces, then the processor, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from bridge.audio.source import ClipAudio
from bridge.errors import JobFailed
from bridge.jobs.separate import Delivery, separate_clip
from bridge.separator import SeparationOptions
from bridge.separator.memory import FrugalNetwork
from bridge.separator.network import TorchModel, load_model
from models.registry import load

ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "processor": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "numpy": MemoryError("Unable to allocate 9 GiB"),
}


class Hungry(nn.Module):
    """A network whose device has memory for so many frames; on the processor for any."""

    def __init__(self, inner: nn.Module, limit_frames: int, error: Exception) -> None:
        super().__init__()
        self.inner = inner
        self.limit_frames: float = limit_frames
        self.error = error
        self.tried: list[int] = []

    def valid_length(self, frames: int) -> int:
        return int(self.inner.valid_length(frames))

    def forward(self, mixture: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        self.tried.append(mixture.shape[-1])
        if mixture.shape[-1] > self.limit_frames:
            raise self.error
        separated: Tensor = self.inner(mixture)
        return separated if stems is None else separated[:, list(stems)]

    def lift_limit(self) -> None:
        self.limit_frames = float("inf")


class Filters(nn.Module):
    """Two stems by a filter of nine frames each; takes multiples of ``step`` frames."""

    def __init__(self, step: int = 8) -> None:
        super().__init__()
        self.step = step
        torch.manual_seed(2)
        self.filter = nn.Conv1d(1, 2, 9, padding=4)

    def valid_length(self, frames: int) -> int:
        return -(-frames // self.step) * self.step

    def forward(self, mixture: Tensor) -> Tensor:
        assert mixture.shape[-1] % self.step == 0
        return self.filter(mixture)[:, :, None]


def frugal(network: Hungry, device: str = "pretended") -> tuple[FrugalNetwork, list[str]]:
    warnings: list[str] = []
    told = FrugalNetwork(
        network,
        valid_frames=network.valid_length,
        least_frames=1000,
        crossfade_frames=500,
        device=device,
        to_processor=network.lift_limit,
        warn=warnings.append,
    )
    return told, warnings


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@torch.no_grad()
def test_pieces_make_the_whole(error: Exception) -> None:
    network = Hungry(Filters(), 4000, error)
    told, warnings = frugal(network)
    mixture = torch.randn(1, 1, 10_000)
    expected = network.inner(mixture)
    separated = told.separate(mixture, [0, 1])
    assert separated.shape == expected.shape
    # At a seam a piece lacks four frames of its neighbourhood, where it hardly counts.
    assert (separated - expected).abs().max() < 0.02 * expected.abs().max()
    assert ((separated - expected).abs() > 1e-6).sum() < 100
    assert network.tried.count(10_000) == 1
    network.tried.clear()
    told.separate(mixture, [1])
    assert max(network.tried) <= 4000, "what was learnt of the memory is kept"
    assert len(set(warnings)) == 1
    assert "smaller pieces" in warnings[0]


@torch.no_grad()
def test_then_the_processor() -> None:
    network = Hungry(Filters(), 500, ERRORS["torch"])
    told, warnings = frugal(network)
    mixture = torch.randn(1, 1, 10_000)
    separated = told.separate(mixture, [0, 1])
    assert (separated - network.inner(mixture)).abs().max() < 0.02
    assert ["processor takes over" in line for line in dict.fromkeys(warnings)] == [False, True]
    network.tried.clear()
    torch.testing.assert_close(told.separate(mixture, [0, 1]), network.inner(mixture))
    assert network.tried == [10_000]


@torch.no_grad()
def test_a_network_of_one_length_goes_to_the_processor_at_once() -> None:
    network = Hungry(Filters(step=10_000), 9999, ERRORS["torch"])
    told, warnings = frugal(network)
    mixture = torch.randn(1, 1, 10_000)
    torch.testing.assert_close(told.separate(mixture, [0, 1]), network.inner(mixture))
    assert network.tried == [10_000, 10_000]
    assert len(warnings) == 1
    assert "processor takes over" in warnings[0]


def test_where_nothing_helps_it_is_one_line() -> None:
    told, _ = frugal(Hungry(Filters(), 500, ERRORS["processor"]), device="cpu")
    with pytest.raises(JobFailed, match="choose a smaller model") as failed:
        told.separate(torch.randn(1, 1, 10_000), [0])
    assert "\n" not in str(failed.value)


def test_other_errors_are_not_taken_for_it() -> None:
    told, warnings = frugal(Hungry(Filters(), 500, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        told.separate(torch.randn(1, 1, 10_000), [0])
    assert warnings == []


def test_a_job_survives_and_tells(tiny_model: Path, tmp_path: Path) -> None:
    audio = (np.random.default_rng(1).standard_normal((300_000, 2)) * 0.1).astype(np.float32)
    path = tmp_path / "clip.wav"
    soundfile.write(path, audio, 44100, subtype="FLOAT")

    def run(name: str, prepare: Callable[[nn.Module], nn.Module]) -> tuple[str, ...]:
        bundle = load(tiny_model)
        (member,) = bundle.members
        member = replace(member, network=prepare(member.network))
        result = separate_clip(
            ClipAudio.from_file(path),
            TorchModel(replace(bundle, members=(member,))),
            SeparationOptions(),
            Delivery(path_of=lambda stem: tmp_path / name / f"{stem}.wav"),
        )
        assert result.null_db < -120
        return result.warnings

    assert run("whole", lambda network: network) == ()
    (warning,) = run("pieces", lambda network: Hungry(network, 60_000, ERRORS["torch"]))
    assert "too little memory on the device 'cpu'" in warning
    whole, _ = soundfile.read(tmp_path / "whole" / "vocals.wav")
    pieces, _ = soundfile.read(tmp_path / "pieces" / "vocals.wav")
    assert np.abs(pieces - whole).mean() < 0.1 * np.abs(whole).mean()


def test_half_precision_is_refused_where_it_is_not_to_be_had(tiny_model: Path) -> None:
    from models.errors import ModelError

    with pytest.raises(ModelError, match="CUDA device, not 'cpu'; leave out --precision"):
        load_model(tiny_model, "cpu", precision="float16")
