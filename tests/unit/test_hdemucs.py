"""Hybrid Demucs against the public reference implementation, and on its own."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from models.hdemucs import HDemucs, HDemucsConfig

HOP = 64
# Small, but with all there is: two split-able layers, the join, and two layers of time alone.
SMALL = HDemucsConfig(channels=16, nfft=4 * HOP, depth=5, norm_starts=3, dconv_attn=3, dconv_lstm=3)
CHUNKED = 211 * HOP + 5  # more columns than the LSTM reads at once

# name: (changes to SMALL, frames)
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 20 * HOP + 7),
    "old padding": ({"hybrid_old": True}, 20 * HOP + 7),
    "old padding, one hop": ({"hybrid_old": True}, 10),
    "spectrogram alone": ({"hybrid": False}, 20 * HOP + 7),
    "magnitudes": ({"cac": False}, 20 * HOP + 7),
    "magnitudes, spectrogram alone": ({"cac": False, "hybrid": False}, 20 * HOP + 7),
    "phase of the mixture": ({"cac": False, "wiener_iters": -1}, 20 * HOP + 7),
    "Wiener, 1": ({"cac": False, "wiener_iters": 1}, 20 * HOP + 7),
    "Wiener, 1, residual": (
        {"cac": False, "wiener_iters": 1, "wiener_residual": True},
        20 * HOP + 7,
    ),
    "Wiener, 2, two windows": ({"cac": False, "wiener_iters": 2, "channels": 8}, 310 * HOP),
    "Wiener, 3, mono, residual": (
        {"cac": False, "wiener_iters": 3, "wiener_residual": True, "audio_channels": 1},
        20 * HOP,
    ),
    "Wiener, 1, spectrogram alone": (
        {"cac": False, "wiener_iters": 1, "hybrid": False, "hybrid_old": False},
        20 * HOP,
    ),
    "residual without Wiener": ({"cac": False, "wiener_residual": True}, 20 * HOP),
    "split bands": ({"multi_freqs": (0.2, 0.5)}, 20 * HOP + 7),
    "split bands, one layer": ({"multi_freqs": (0.3,), "multi_freqs_depth": 1}, 20 * HOP + 7),
    "split bands, magnitudes, alone": (
        {"multi_freqs": (0.2,), "cac": False, "hybrid": False, "dconv_mode": 3},
        20 * HOP + 7,
    ),
    "split bands, old padding": ({"multi_freqs": (0.2, 0.5), "hybrid_old": True}, 20 * HOP + 7),
    "branches nowhere": ({"dconv_mode": 0}, 20 * HOP + 7),
    "branches in the decoder": ({"dconv_mode": 2}, 20 * HOP + 7),
    "branches in both": ({"dconv_mode": 3}, 20 * HOP + 7),
    "LSTM in chunks": ({"dconv_lstm": 2, "dconv_attn": 99}, CHUNKED),
    "LSTM and attention, both ways, in chunks": (
        {"dconv_mode": 3, "dconv_lstm": 2, "dconv_attn": 2},
        CHUNKED,
    ),
    "attention everywhere": ({"dconv_attn": 0, "dconv_lstm": 99}, 20 * HOP + 7),
    "three branches": ({"dconv_depth": 3, "dconv_comp": 2}, 20 * HOP + 7),
    "no dilation": ({"dconv_depth": -2}, 20 * HOP + 7),
    "norms everywhere": ({"norm_starts": 0, "norm_groups": 2}, 20 * HOP + 7),
    "norms nowhere": ({"norm_starts": 99}, 20 * HOP + 7),
    "context in the encoder": ({"context_enc": 1, "context": 2}, 20 * HOP + 7),
    "no context": ({"context": 0}, 20 * HOP + 7),
    "narrow waveform": ({"channels_time": 8}, 20 * HOP + 7),
    "wide waveform": ({"channels_time": 32, "channels": 16}, 20 * HOP + 7),
    "no rewrite": ({"rewrite": False, "dconv_mode": 3}, 20 * HOP + 7),
    "no embedding": ({"freq_emb": 0.0}, 20 * HOP + 7),
    "another embedding": ({"freq_emb": 0.5, "emb_scale": 3.0}, 20 * HOP + 7),
    "six sources": ({"sources": tuple("abcdef")}, 20 * HOP + 7),
    "one source, mono": ({"sources": ("a",), "audio_channels": 1}, 20 * HOP + 7),
    "growth": ({"growth": 1.5, "norm_groups": 1, "dconv_attn": 99}, 20 * HOP + 7),
    "joined at the very bottom": ({"depth": 3}, 20 * HOP + 7),
    "other strides of time": ({"time_stride": 4}, 20 * HOP + 7),
    "published shape, narrow": ({"nfft": 4096, "depth": 6, "norm_starts": 4}, 40 * 1024 + 77),
    "published Music Demixing shape, narrow": (
        {"nfft": 4096, "depth": 6, "multi_freqs": (0.2, 0.4), "hybrid_old": True, "dconv_mode": 3},
        12 * 1024 + 77,
    ),
}
LENGTHS = [1, 2, 100, HOP - 1, HOP, HOP + 1, 2 * HOP - 1, 333, 4 * HOP, 8 * HOP, 8 * HOP + 1]
LENGTH_CASES = {
    "plain": {},
    "old padding": {"hybrid_old": True},
    "mono": {"audio_channels": 1, "sources": ("a", "b")},
    "magnitudes, split bands": {"cac": False, "multi_freqs": (0.2, 0.5)},
}


def reference_of(config: HDemucsConfig) -> torch.nn.Module:
    """The reference's network, with weights under which every branch matters."""
    reference = pytest.importorskip("demucs.hdemucs")
    arguments = config.to_dict()
    arguments["samplerate"] = arguments.pop("sample_rate_hz")
    arguments["segment"] = arguments.pop("segment_frames") / arguments["samplerate"]
    network: torch.nn.Module = reference.HDemucs(**arguments, end_iters=config.wiener_iters)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".scale"):
                parameter.uniform_(0.1, 0.6)
            elif "norm" in name or parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "query_decay" in name:
                parameter.mul_(50)
            elif parameter.dim() > 2:
                parameter.mul_(1.5)
    return network.eval()


def networks_of(config: HDemucsConfig) -> tuple[torch.nn.Module, HDemucs]:
    """The reference's network and ours, with the same weights."""
    torch.manual_seed(1)
    reference = reference_of(config)
    network = HDemucs(config).eval()
    network.load_state_dict(reference.state_dict())
    return reference, network


def mixture_of(config: HDemucsConfig, frames: int, batch: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(batch, config.audio_channels, frames) + 0.02


def difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Largest difference, relative to the peak of what is expected."""
    assert actual.shape == expected.shape
    return float((expected - actual).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str, record_property: Any) -> None:
    changes, frames = CASES[case]
    config = replace(SMALL, **changes)
    reference, network = networks_of(config)
    mixture = mixture_of(config, frames)
    with torch.inference_mode():
        expected, actual = reference(mixture), network(mixture)
    assert expected.abs().max() > 0.05
    found = difference(expected, actual)
    record_property("difference", found)
    print(f"{case}: {found:.1e} of the peak {float(expected.abs().max()):.2f}")
    assert found <= 1e-5


@pytest.mark.parametrize("iterations", [-1, 0, 1])
def test_equals_the_reference_around_silence(iterations: int) -> None:
    """Bins that are exactly zero have no phase; the reference gives them one."""
    config = replace(SMALL, cac=False, wiener_iters=iterations, hybrid=False)
    reference, network = networks_of(config)
    mixture = mixture_of(config, 40 * HOP)
    mixture[:, :, 10 * HOP : 30 * HOP] = 0
    with torch.inference_mode():
        assert difference(reference(mixture), network(mixture)) <= 1e-5


@pytest.mark.parametrize("case", LENGTH_CASES)
def test_equals_the_reference_at_every_length(case: str) -> None:
    config = replace(SMALL, **LENGTH_CASES[case])
    reference, network = networks_of(config)
    for frames in LENGTHS:
        if frames == 1 and config.audio_channels == 1:
            continue  # the reference divides by the standard deviation of one number
        mixture = mixture_of(config, frames, batch=1)
        with torch.inference_mode():
            assert difference(reference(mixture), network(mixture)) <= 1e-5, frames


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hybrid": False},
        {"cac": False},
        {"cac": False, "wiener_iters": -1},
        {"cac": False, "wiener_iters": 1, "wiener_residual": True},
        {"norm_starts": 0},
        {"multi_freqs": (0.2, 0.5)},
        {"audio_channels": 1},
    ],
)
def test_wanted_stems_are_those_of_the_whole(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    network = networks_of(config)[1]
    mixture = mixture_of(config, 5 * HOP + 3)
    with torch.inference_mode():
        whole = network(mixture)
        for wanted in ([0], [3], [2, 0], [0, 1, 2, 3]):
            assert difference(whole[:, wanted], network(mixture, wanted)) <= 2e-6


def test_wanted_stems_alone_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stem of four takes a quarter of the inverse transforms."""
    network = networks_of(SMALL)[1]
    shapes = []
    inverse = network.spectrogram.inverse

    def recording(spectrum: torch.Tensor, frames: int) -> torch.Tensor:
        shapes.append(tuple(spectrum.shape))
        return inverse(spectrum, frames)

    monkeypatch.setattr(network.spectrogram, "inverse", recording)
    with torch.inference_mode():
        network(mixture_of(SMALL, 5 * HOP), [1])
    assert shapes == [(2, 1, 2, SMALL.nfft // 2, 5)]


@pytest.mark.parametrize("frames", [1, 5, 10 * HOP])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"audio_channels": 1},
        {"hybrid": False},
        {"hybrid": False, "audio_channels": 1},
        {"cac": False, "wiener_iters": 2, "wiener_residual": True},
        {"cac": False, "wiener_iters": -1},
    ],
)
def test_short_clips_and_silence_stay_finite(changes: dict[str, Any], frames: int) -> None:
    config = replace(SMALL, **changes)
    network = networks_of(config)[1]
    for mixture in (mixture_of(config, frames), torch.zeros(2, config.audio_channels, frames)):
        with torch.inference_mode():
            stems = network(mixture)
        assert stems.shape == (2, 4, config.audio_channels, frames)
        assert torch.isfinite(stems).all()


def test_any_length_is_valid() -> None:
    network = HDemucs(SMALL)
    assert [network.valid_length(frames) for frames in (1, 343_979)] == [1, 343_979]


def test_wdemucs_is_the_same_network() -> None:
    """What older checkpoints call WDemucs."""
    old = pytest.importorskip("demucs.wdemucs")
    assert old.WDemucs is pytest.importorskip("demucs.hdemucs").HDemucs


def test_shapes_without_memory() -> None:
    with torch.device("meta"):
        network = HDemucs(HDemucsConfig())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert math.isclose(count, 83.6e6, rel_tol=0.001)
    assert next(network.parameters()).is_meta


def test_config_round_trip() -> None:
    config = replace(SMALL, multi_freqs=(0.2, 0.5), channels_time=8, sources=("x", "y"))
    assert HDemucsConfig.from_dict(config.to_dict()) == config


def test_config_of_a_checkpoint() -> None:
    """The arguments as training wrote them: also those that inference does not read."""
    config = HDemucsConfig.from_reference(
        {
            "sources": ["drums", "bass", "other", "vocals"],
            "samplerate": 44100,
            "segment": Fraction(39, 5),
            "multi_freqs": None,
            "channels_time": None,
            "freq_emb": None,
            "hybrid_old": 0,
            "growth": 2,
            "end_iters": 0,
            "emb_smooth": True,
            "rescale": 0.1,
            "dconv_init": 1e-3,
            "unheard_of": {},
        }
    )
    assert config == HDemucsConfig(segment_frames=343_980, freq_emb=0.0)
    assert HDemucsConfig.from_reference({"sources": ["a"], "multi_freqs": [0.2, 0.4]}) == (
        HDemucsConfig(sources=("a",), multi_freqs=(0.2, 0.4))
    )


def test_defaults_are_those_of_the_reference() -> None:
    """A checkpoint names only the arguments in which it differs."""
    reference = pytest.importorskip("demucs.hdemucs")
    arguments = {
        name: parameter.default
        for name, parameter in inspect.signature(reference.HDemucs).parameters.items()
        if name != "sources"
    }
    sources = list(HDemucsConfig().sources)
    assert HDemucsConfig.from_reference({**arguments, "sources": sources}) == HDemucsConfig()


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"sources": ["a", "a"]},
        {"sources": [""]},
        {"sources": [1]},
        {"sources": [str(number) for number in range(65)]},
        {"sources": "ab"},
        {"depth": 0},
        {"depth": 17},
        {"depth": True},
        {"depth": 2.0},
        {"channels": "48"},
        {"channels": 10**400},
        {"channels": 2**15},
        {"channels": 2},
        {"growth": float("nan")},
        {"growth": 0.1},
        {"norm_groups": 0},
        {"nfft": 100},
        {"nfft": 2 * HOP},
        {"nfft": 8 * 3 * 5},
        {"kernel_size": 9},
        {"time_stride": 3},
        {"hybrid": False, "hybrid_old": True},
        {"multi_freqs": [0.5, 0.2]},
        {"multi_freqs": [0.0]},
        {"multi_freqs": [0.5], "multi_freqs_depth": 3},
        {"multi_freqs": [0.5], "norm_starts": 1},
        {"cac": False, "wiener_iters": 1, "audio_channels": 3},
        {"dconv_mode": 4},
        {"surprise": 1},
    ],
)
def test_config_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError) as refusal:
        HDemucsConfig.from_dict({**SMALL.to_dict(), **change})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {"segment": "7.8"},
        {"segment": 0},
        {"segment": float("inf")},
        {"samplerate": "44100"},
        {"growth": "2"},
        {"sources": None},
    ],
)
def test_arguments_of_a_checkpoint_that_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        HDemucsConfig.from_reference({"sources": ["a"], "segment": 10, **change})


@pytest.mark.parametrize("ratios", [(0.001,), (0.999,), (0.2, 0.21)])
def test_bands_that_are_too_narrow(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="too narrow"):
        HDemucs(replace(SMALL, multi_freqs=ratios))
