"""The waveform Demucs against the public reference implementation, and on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from models import lstm, recurrence, stretches, widening
from models.checkpoints import network_from_state
from models.demucs import Demucs, DemucsConfig, rename_v2_keys
from models.resample import Resample2x

# Version 2, and version 3: residual branches in both halves, LSTM and attention in some of them.
SMALL = DemucsConfig(channels=8, depth=4, resample=False, normalize=False)
VERSION_3 = replace(
    SMALL,
    gelu=True,
    lstm_layers=0,
    norm_starts=2,
    norm_groups=2,
    dconv_mode=3,
    dconv_comp=2.0,
    dconv_attn=2,
    dconv_lstm=1,
    resample=True,
    normalize=True,
)
# The innermost layer then has more than 200 steps, which the branches' LSTMs read in chunks.
LONG = replace(VERSION_3, depth=2, dconv_lstm=0, dconv_attn=1, resample=False)

# name: (config, frames); odd frame counts, so that padding and trimming are seen.
PARITY_CASES = {
    "plain": (SMALL, 20_001),
    "one layer": (replace(SMALL, depth=1), 5_001),
    "two layers": (replace(SMALL, depth=2), 5_001),
    "three layers": (replace(SMALL, depth=3), 5_001),
    "resample": (replace(SMALL, resample=True, normalize=True), 20_003),
    "context 3, mono, normalized": (
        replace(SMALL, context=3, audio_channels=1, normalize=True, sources=("a", "b")),
        12_345,
    ),
    "published shape, narrow": (DemucsConfig(channels=6, depth=6), 44_101),
    "no lstm, kernel 6, stride 3": (
        replace(SMALL, lstm_layers=0, kernel_size=6, stride=3, growth=1.5, context=0),
        7_777,
    ),
    "shorter than a window": (replace(SMALL, resample=True, normalize=True), 17),
    "two frames": (replace(SMALL, resample=True, normalize=True), 2),
    "one frame": (SMALL, 1),
    "version 3": (VERSION_3, 9_001),
    "version 3, published layers": (
        DemucsConfig.from_reference(
            {"sources": ["drums", "bass", "other", "vocals"], "channels": 8, "dconv_comp": 2}
        ),
        30_001,
    ),
    "long": (LONG, 4_001),
    "long, one lstm more": (replace(LONG, lstm_layers=1), 4_001),
    "branches in the encoder": (replace(VERSION_3, dconv_mode=1), 5_000),
    "branches in the decoder": (replace(VERSION_3, dconv_mode=2), 5_000),
    "no branches": (replace(VERSION_3, dconv_mode=0), 5_000),
    "three branches": (replace(VERSION_3, dconv_depth=3), 5_000),
    "branches without dilation": (replace(VERSION_3, dconv_depth=-2), 5_000),
    "branches, uneven compression": (
        replace(VERSION_3, dconv_comp=1.7, dconv_attn=9),
        5_000,
    ),
    "no rewrite": (replace(VERSION_3, rewrite=False), 5_000),
    "no rewrite, no branches": (replace(SMALL, rewrite=False), 5_000),
    "relu for glu": (replace(VERSION_3, glu=False), 5_000),
    "relu for gelu": (replace(VERSION_3, gelu=False), 5_000),
    "relu for both": (replace(SMALL, glu=False), 5_000),
    "all layers normalised, four groups": (
        replace(VERSION_3, norm_starts=0, norm_groups=4),
        5_000,
    ),
    "mono, two stems": (replace(VERSION_3, audio_channels=1, sources=("a", "b")), 5_000),
    "version 3, two frames": (VERSION_3, 2),
    "version 3, hundred frames": (VERSION_3, 100),
}


def reference_of(config: DemucsConfig) -> torch.nn.Module:
    """The reference network (version 3's class, which knows version 2's options)."""
    reference = pytest.importorskip("demucs.demucs")
    options = asdict(config)
    for name in ("sample_rate_hz", "segment_frames", "max_channels"):
        del options[name]
    options["sources"] = list(config.sources)
    network: torch.nn.Module = reference.Demucs(**options)
    return network.eval()


def trained_like(network: torch.nn.Module) -> torch.nn.Module:
    """Make every part matter; fresh weights give stems near zero, which would agree anyway."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith(".scale"):
                parameter.uniform_(0.1, 0.6)
            elif key.endswith("query_decay.bias"):
                parameter.uniform_(-3, 1)
            elif parameter.dim() == 3 and ".layers." not in key:
                parameter.mul_(2.5)  # convolutions
            elif parameter.dim() == 1 and "lstm" not in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def pair(config: DemucsConfig) -> tuple[torch.nn.Module, Demucs]:
    """The reference and our network, with the same weights."""
    torch.manual_seed(1)
    reference = trained_like(reference_of(config))
    network = Demucs(config).eval()
    network.load_state_dict(reference.state_dict())
    return reference, network


@pytest.mark.parametrize("case", PARITY_CASES)
def test_equals_the_reference(case: str) -> None:
    config, frames = PARITY_CASES[case]
    reference, network = pair(config)
    mixture = 0.3 * torch.randn(2, config.audio_channels, frames) + 0.05

    with torch.no_grad():
        expected, actual = reference(mixture), network(mixture)

    assert actual.shape == (2, len(config.sources), config.audio_channels, frames)
    assert expected.std() > 0.02
    relative = float((expected - actual).abs().max() / expected.abs().max())
    print(f"{case}: largest difference {relative:.1e} of the peak")
    assert relative <= 1e-5


@pytest.mark.parametrize("case", PARITY_CASES)
def test_valid_length_equals_the_reference(case: str) -> None:
    config, _ = PARITY_CASES[case]
    reference, network = reference_of(config), Demucs(config)
    for frames in (1, 2, 3, 100, 1023, 1024, 1025, 44_100, 123_457):
        assert network.valid_length(frames) == reference.valid_length(frames)  # type: ignore[operator]


def test_initial_weights_are_those_of_the_reference() -> None:
    """Same seed, same order of creation, same rescaling: the same numbers."""
    torch.manual_seed(7)
    expected = reference_of(SMALL).state_dict()
    torch.manual_seed(7)
    actual = Demucs(SMALL).state_dict()
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("stems", [[0], [3], [2, 0], [1, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("config", [SMALL, VERSION_3], ids=["version 2", "version 3"])
def test_wanted_stems_are_a_slice_of_all(config: DemucsConfig, stems: Sequence[int]) -> None:
    _, network = pair(config)
    mixture = torch.randn(1, 2, 3001)
    with torch.no_grad():
        everything, wanted = network(mixture), network(mixture, stems)
    assert wanted.shape == (1, len(stems), 2, 3001)
    torch.testing.assert_close(wanted, everything[:, list(stems)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("up", [True, False])
def test_resampling_equals_julius(up: bool) -> None:
    julius = pytest.importorskip("julius")
    torch.manual_seed(3)
    x = torch.randn(2, 3, 1001)
    expected = julius.resample_frac(x, 1, 2) if up else julius.resample_frac(x, 2, 1)
    torch.testing.assert_close(Resample2x(up=up)(x), expected, rtol=0, atol=5e-7)


def test_resampling_keeps_a_tone() -> None:
    """Up and down again gives back a tone below the cut, but for the borders."""
    time = torch.arange(8000) / 44100
    tone = torch.sin(2 * torch.pi * 5000 * time)[None, None]
    back = Resample2x(up=False)(Resample2x(up=True)(tone))
    assert (back - tone)[..., 200:-200].abs().max() < 1e-3


def as_version_2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Number the layers as version 2's files and this project's first checkpoints do."""
    second = re.compile(r"^((?:en|de)coder\.\d+)\.3\.")
    return {second.sub(r"\1.2.", key): value for key, value in state.items()}


def test_version_2_names() -> None:
    """A published version 2 state dict loads by its own names, and the reference agrees."""
    reference, network = pair(SMALL)
    old = as_version_2(network.state_dict())
    for part in ("encoder", "decoder"):
        for layer in range(SMALL.depth):
            for index in (0, 2):
                assert f"{part}.{layer}.{index}.weight" in old
    assert "lstm.lstm.weight_ih_l1_reverse" in old
    assert set(rename_v2_keys(old)) == set(network.state_dict())
    untouched = dict(old)

    fresh = Demucs(SMALL).eval()
    fresh.load_state_dict(old)

    assert old.keys() == untouched.keys()
    mixture = torch.randn(1, 2, 2000)
    with torch.no_grad():
        expected = reference(mixture)
        torch.testing.assert_close(fresh(mixture), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["version 3", "no rewrite", "no rewrite, no branches", "long"])
def test_version_3_names_are_left_alone(case: str) -> None:
    state = Demucs(PARITY_CASES[case][0]).state_dict()
    assert rename_v2_keys(state) == dict(state)


def test_version_2_names_inside_another_module() -> None:
    holder = torch.nn.ModuleDict({"inner": Demucs(SMALL)})
    state = as_version_2(Demucs(SMALL).state_dict())
    holder.load_state_dict({f"inner.{key}": value for key, value in state.items()})
    torch.testing.assert_close(holder["inner"].state_dict(), rename_v2_keys(state))


def test_first_checkpoints_keep_their_meaning() -> None:
    """A config written before version 3 was known names fewer options."""
    first: dict[str, Any] = {
        "sources": ["drums", "bass", "other", "vocals"],
        "audio_channels": 2,
        "channels": 4,
        "growth": 2.0,
        "max_channels": 6,
        "depth": 3,
        "kernel_size": 8,
        "stride": 4,
        "context": 1,
        "lstm_layers": 2,
        "resample": False,
        "normalize": True,
        "rescale": 0.1,
        "sample_rate_hz": 44100,
        "segment_frames": 44100,
    }
    network = Demucs(DemucsConfig.from_dict(first))
    kinds = {type(module).__name__ for module in network.modules()}
    assert not kinds & {"GELU", "GroupNorm", "DConv"}
    assert network.config.layer_channels() == [4, 6, 6]


def test_reference_arguments() -> None:
    """What a version 3 file carries: other names, other defaults, training's own options."""
    config = DemucsConfig.from_reference(
        {
            "sources": ["a", "b"],
            "samplerate": 48000,
            "segment": 11.5,
            "channels": 32,
            "dconv_init": 1e-3,
            "rescale": 0.2,
            "never_heard_of": object(),
        }
    )
    assert config.sources == ("a", "b")
    assert (config.sample_rate_hz, config.segment_frames) == (48000, 552_000)
    assert (config.channels, config.depth, config.lstm_layers) == (32, 6, 0)
    assert (config.gelu, config.norm_starts, config.dconv_mode) == (True, 4, 1)
    with pytest.raises(ValueError, match="depth"):
        DemucsConfig.from_reference({"sources": ["a"], "depth": 0})


@pytest.mark.parametrize("config", [SMALL, VERSION_3], ids=["version 2", "version 3"])
def test_builds_without_memory(config: DemucsConfig) -> None:
    with torch.device("meta"):
        network = Demucs(replace(config, channels=2048))
    assert all(parameter.is_meta for parameter in network.parameters())


def test_trains() -> None:
    """Nothing in the forward pass stands in the way of gradients, in either version."""
    for config in (SMALL, VERSION_3):
        network = Demucs(config)
        network(torch.randn(1, 2, 900)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("config", [SMALL, VERSION_3], ids=["version 2", "version 3"])
def test_normalized_network_is_scale_equivariant(config: DemucsConfig) -> None:
    """Ten times louder in, ten times louder out: what normalisation is for."""
    torch.manual_seed(2)
    network = Demucs(replace(config, normalize=True)).eval()
    mixture = torch.randn(1, 2, 9000)
    with torch.no_grad():
        quiet, loud = network(mixture), network(10 * mixture)
    torch.testing.assert_close(loud, 10 * quiet, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 400])
@pytest.mark.parametrize("config", [SMALL, VERSION_3], ids=["version 2", "version 3"])
def test_silence_stays_finite(config: DemucsConfig, frames: int) -> None:
    network = Demucs(replace(config, normalize=True)).eval()
    with torch.no_grad():
        stems = network(torch.zeros(1, 2, frames))
    assert stems.shape[-1] == frames
    assert torch.isfinite(stems).all()


def test_channel_limit() -> None:
    config = DemucsConfig(channels=16, depth=5, max_channels=64)
    assert config.layer_channels() == [16, 32, 64, 64, 64]


def test_config_round_trip() -> None:
    config = replace(VERSION_3, max_channels=96, sources=("x", "y"))
    assert DemucsConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"sources": ["a", "a"]},
        {"depth": 0},
        {"depth": 17},
        {"lstm_layers": 1000},
        {"dconv_depth": 1000},
        {"growth": 1e300},
        {"channels": 10**9},
        {"stride": 9},
        {"channels": -1},
        {"context": -1},
        {"max_channels": 2},
        {"dconv_mode": 4},
        {"dconv_mode": 1, "dconv_comp": 0},
        {"dconv_mode": 1, "dconv_comp": 16},
        {"dconv_mode": 1, "dconv_attn": 0, "dconv_comp": 8},
        {"norm_starts": 0, "norm_groups": 3},
        {"surprise": 1},
        {"channels": "many"},
    ],
)
def test_config_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        DemucsConfig.from_dict({**SMALL.to_dict(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frames", [3000, 20_000])
@pytest.mark.parametrize("stems", [None, [2, 0]])
def test_a_wide_lstm_reads_a_batch_at_once(
    monkeypatch: pytest.MonkeyPatch, frames: int, stems: Sequence[int] | None
) -> None:
    """With weights beyond the cache, and short stretches: the same output as the reference."""
    monkeypatch.setattr(recurrence, "WIDE_CHANNELS", 1)
    monkeypatch.setattr(stretches, "CACHE_BYTES", 4 * 2 * 3 * SMALL.channels * 100)
    reference, network = pair(replace(SMALL, normalize=False))
    mixture = 0.3 * torch.randn(3, 2, frames, generator=torch.Generator().manual_seed(frames))
    with torch.inference_mode():
        expected = reference(mixture)
        got = network(mixture, stems)
    expected = expected if stems is None else expected[:, stems]
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_weights_in_half_precision_are_widened_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stored in half precision, in half the memory: what the reference makes of the numbers."""
    monkeypatch.setattr(recurrence, "WIDE_CHANNELS", 1)
    monkeypatch.setattr(lstm, "WIDE_CHANNELS", 1)
    monkeypatch.setattr(widening, "LEAST_VALUES", 100)
    reference, _ = pair(SMALL)
    state = {name: tensor.half() for name, tensor in reference.state_dict().items()}
    reference.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    network = network_from_state(SMALL, state)
    held = {name for name, tensor in network.named_parameters() if tensor.dtype == torch.float16}
    assert {"encoder.2.3.weight", "decoder.0.3.weight", "lstm.lstm.weight_hh_l1"} <= held
    mixture = 0.3 * torch.randn(2, 2, 9000, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, got = reference(mixture), network(mixture)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5
