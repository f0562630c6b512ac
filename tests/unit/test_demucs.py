"""The waveform Demucs against the public reference implementation, and on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.demucs import Demucs, DemucsConfig, Resample2x, rename_v3_keys

SMALL = DemucsConfig(channels=8, depth=4, resample=False, normalize=False)

# name: (config, frames); odd frame counts, so that padding and trimming are seen.
PARITY_CASES = {
    "plain": (SMALL, 20_001),
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
}

LOUDER = 2.5


def reference_of(config: DemucsConfig) -> torch.nn.Module:
    """The reference network (version 3's class with version 2's options)."""
    reference = pytest.importorskip("demucs.demucs")
    network: torch.nn.Module = reference.Demucs(
        sources=list(config.sources),
        audio_channels=config.audio_channels,
        channels=config.channels,
        growth=config.growth,
        depth=config.depth,
        lstm_layers=config.lstm_layers,
        kernel_size=config.kernel_size,
        stride=config.stride,
        context=config.context,
        gelu=False,
        norm_starts=config.depth + 1,
        dconv_mode=0,
        normalize=config.normalize,
        resample=config.resample,
        rescale=config.rescale,
    )
    return network.eval()


@pytest.mark.parametrize("case", PARITY_CASES)
def test_equals_the_reference(case: str) -> None:
    config, frames = PARITY_CASES[case]
    torch.manual_seed(1)
    reference = reference_of(config)
    # Fresh weights give stems near zero, which would agree anyway.
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(LOUDER if parameter.dim() == 3 else 1.0)  # convolutions
    network = Demucs(config).eval()
    network.load_state_dict(rename_v3_keys(reference.state_dict()))
    mixture = 0.3 * torch.randn(2, config.audio_channels, frames) + 0.05

    with torch.no_grad():
        expected, actual = reference(mixture), network(mixture)

    assert actual.shape == (2, len(config.sources), config.audio_channels, frames)
    assert expected.abs().max() > 0.2
    difference = float((expected - actual).abs().max())
    print(f"{case}: max abs difference {difference:.2e}, peak {float(expected.abs().max()):.2f}")
    assert difference <= 1e-5


@pytest.mark.parametrize("case", PARITY_CASES)
def test_valid_length_equals_the_reference(case: str) -> None:
    config, _ = PARITY_CASES[case]
    reference, network = reference_of(config), Demucs(config)
    for frames in (1, 2, 3, 100, 1023, 1024, 1025, 44_100, 123_457):
        assert network.valid_length(frames) == reference.valid_length(frames)  # type: ignore[operator]


def test_initial_weights_are_those_of_the_reference() -> None:
    """Same seed, same order of creation, same rescaling: the same numbers."""
    torch.manual_seed(7)
    expected = rename_v3_keys(reference_of(SMALL).state_dict())
    torch.manual_seed(7)
    actual = Demucs(SMALL).state_dict()
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


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


def test_version_2_names() -> None:
    """A published version 2 state dict loads by its own names."""
    keys = set(Demucs(SMALL).state_dict())
    for part in ("encoder", "decoder"):
        for layer in range(SMALL.depth):
            for index in (0, 2):
                assert f"{part}.{layer}.{index}.weight" in keys
    assert "lstm.lstm.weight_ih_l1_reverse" in keys
    assert "lstm.linear.weight" in keys


def test_normalized_network_is_scale_equivariant() -> None:
    """Ten times louder in, ten times louder out: what normalisation is for."""
    torch.manual_seed(2)
    network = Demucs(replace(SMALL, normalize=True)).eval()
    mixture = torch.randn(1, 2, 9000)
    with torch.no_grad():
        quiet, loud = network(mixture), network(10 * mixture)
    torch.testing.assert_close(loud, 10 * quiet, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 400])
def test_silence_stays_finite(frames: int) -> None:
    network = Demucs(replace(SMALL, normalize=True)).eval()
    with torch.no_grad():
        stems = network(torch.zeros(1, 2, frames))
    assert stems.shape[-1] == frames
    assert torch.isfinite(stems).all()


def test_channel_limit() -> None:
    config = DemucsConfig(channels=16, depth=5, max_channels=64)
    assert config.layer_channels() == [16, 32, 64, 64, 64]


def test_config_round_trip() -> None:
    config = replace(SMALL, max_channels=96, sources=("x", "y"))
    assert DemucsConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"sources": ["a", "a"]},
        {"depth": 0},
        {"stride": 9},
        {"channels": -1},
        {"context": -1},
        {"max_channels": 2},
        {"surprise": 1},
    ],
)
def test_config_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DemucsConfig.from_dict({**SMALL.to_dict(), **change})
