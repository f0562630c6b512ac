"""The spectrogram U-Net: shapes, what its masks promise, and independence of batch and level."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.spectral import SpectralConfig, SpectralUNet

TINY = SpectralConfig(window_frames=512, hop_frames=128, channels=4, lstm_channels=8)


def network_of(config: SpectralConfig = TINY) -> SpectralUNet:
    """A network whose masks are far from equal shares."""
    torch.manual_seed(0)
    network = SpectralUNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("frames", [1, 127, 128, 511, 512, 4001])
def test_stems_have_the_mixtures_frames_and_sum(frames: int) -> None:
    mixture = torch.randn(2, 2, frames)
    stems = network_of()(mixture)
    assert stems.shape == (2, 4, 2, frames)
    torch.testing.assert_close(stems.sum(dim=1), mixture, rtol=0, atol=1e-5)
    if frames > 512:
        assert (stems - mixture[:, None] / 4).abs().max() > 0.05


def test_masks_share_out_each_bin() -> None:
    network = network_of()
    mixture = torch.randn(1, 2, 5000)
    spectrum = torch.stft(mixture[0], 512, 128, window=torch.hann_window(512), return_complex=True)[
        None
    ]
    masks = network.masks(mixture, spectrum)
    assert masks.shape == (1, 4, *spectrum.shape[1:])
    assert masks.min() >= 0
    torch.testing.assert_close(masks.sum(dim=1), torch.ones_like(masks[:, 0]))


def test_level_does_not_matter() -> None:
    network = network_of()
    mixture = torch.randn(1, 2, 6000)
    torch.testing.assert_close(network(0.01 * mixture), 0.01 * network(mixture), rtol=0, atol=1e-4)


def test_examples_of_a_batch_do_not_see_each_other() -> None:
    network = network_of()
    mixture = torch.randn(3, 2, 3000)
    together = network(mixture)
    for index in range(3):
        alone = network(mixture[index : index + 1])[0]
        torch.testing.assert_close(alone, together[index], rtol=0, atol=1e-5)


def test_silence_stays_silent() -> None:
    stems = network_of()(torch.zeros(1, 2, 3000))
    assert float(stems.abs().max()) == 0


def test_mono_and_other_stems() -> None:
    network = network_of(replace(TINY, audio_channels=1, sources=("voice", "rest"), depth=2))
    assert network(torch.randn(1, 1, 2000)).shape == (1, 2, 1, 2000)


def test_config_round_trip() -> None:
    config = replace(TINY, sources=("x", "y"), lstm_layers=2)
    assert SpectralConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"sources": ["a", "a"]},
        {"depth": 0},
        {"depth": 20},
        {"depth": 4, "window_frames": 640},
        {"hop_frames": 400},
        {"channels": 1.5},
        {"lstm_layers": -1},
        {"surprise": 1},
    ],
)
def test_config_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SpectralConfig.from_dict({**TINY.to_dict(), **change})
