"""Hybrid Transformer Demucs against the public reference implementation, and on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from models.htdemucs import HTDemucs, HTDemucsConfig

# The published shape, narrow: 512 bins become 8 in three layers.
SMALL = HTDemucsConfig(
    channels=8,
    depth=3,
    nfft=1024,
    dconv_mode=3,
    dconv_comp=4.0,
    bottom_channels=16,
    t_layers=3,
    t_heads=2,
    t_hidden_scale=2.0,
    segment_frames=5000,
)
FREE = replace(SMALL, use_train_segment=False)
PLAIN = replace(SMALL, bottom_channels=0)
# 128 bins become 1 in three layers of four: the third joins, a fourth works on time alone.
JOINED = replace(SMALL, nfft=256, depth=3)
SPLIT = replace(SMALL, multi_freqs=(0.3, 0.6), multi_freqs_depth=2)

# name: (config, frames)
PARITY_CASES = {
    "whole segment": (SMALL, 5000),
    "shorter than the segment": (SMALL, 4999),
    "far shorter than the segment": (SMALL, 100),
    "one frame": (SMALL, 1),
    "two frames": (SMALL, 2),
    "without a training length": (FREE, 5000),
    "without, a hop": (FREE, 256),
    "without, a hop less one": (FREE, 255),
    "without, a hop and one": (FREE, 257),
    "without, several hops": (FREE, 2560),
    "without, hundred frames": (FREE, 100),
    "without, two frames": (FREE, 2),
    "without, one frame": (FREE, 1),
    "without, longer than a segment": (FREE, 9001),
    "six stems": (replace(PLAIN, sources=tuple("abcdef")), 5000),
    "mono": (replace(SMALL, audio_channels=1, sources=("a", "b")), 3000),
    "mono, without, one frame": (replace(FREE, audio_channels=1), 2),
    "no bottom channels": (PLAIN, 5000),
    "no transformer": (replace(PLAIN, t_layers=0), 5000),
    "no transformer, bottom channels": (replace(SMALL, t_layers=0), 5000),
    "no transformer, narrow waveform": (
        replace(PLAIN, t_layers=0, channels_time=4, dconv_comp=2.0),
        5000,
    ),
    "no transformer, wide waveform": (replace(PLAIN, t_layers=0, channels_time=12), 5000),
    "joined, no transformer, wide waveform": (
        replace(JOINED, bottom_channels=0, t_layers=0, channels_time=12),
        5000,
    ),
    "bands": (SPLIT, 5000),
    "bands in the outermost layer": (replace(SPLIT, multi_freqs_depth=1), 5000),
    "joined": (JOINED, 5000),
    "joined, narrow waveform": (replace(JOINED, channels_time=4, dconv_comp=2.0), 5000),
    "joined, no transformer": (replace(JOINED, t_layers=0), 5000),
    "joined, layers on time": (replace(JOINED, t_layers=0, depth=5), 5000),
    "normalised": (replace(SMALL, norm_starts=0, norm_groups=2), 5000),
    "branches in the encoder": (replace(SMALL, dconv_mode=1), 5000),
    "branches in the decoder": (replace(SMALL, dconv_mode=2), 5000),
    "no branches": (replace(SMALL, dconv_mode=0), 5000),
    "three branches": (replace(SMALL, dconv_depth=3), 5000),
    "branches without dilation": (replace(SMALL, dconv_depth=-2), 5000),
    "no rewrite": (replace(SMALL, rewrite=False), 5000),
    "context": (replace(SMALL, context=0, context_enc=1), 5000),
    "no frequency embedding": (replace(SMALL, freq_emb=0.0), 5000),
    "another embedding scale": (replace(SMALL, freq_emb=0.4, emb_scale=3.0), 5000),
    "kernel 4, stride 2": (replace(SMALL, kernel_size=4, stride=2), 5000),
    "growth": (replace(PLAIN, growth=3.0, t_heads=2), 5000),
    "masks": (replace(SMALL, cac=False, wiener_iters=-1), 5000),
    "masks, mixture's phase": (replace(SMALL, cac=False), 5000),
    "masks, wiener": (replace(SMALL, cac=False, wiener_iters=2), 5000),
    "masks, wiener, residual": (
        replace(SMALL, cac=False, wiener_iters=1, wiener_residual=True),
        5000,
    ),
    "cape": (replace(SMALL, t_emb="cape"), 5000),
    "cape, from zero": (replace(SMALL, t_emb="cape", t_cape_mean_normalize=False), 5000),
    "learned positions": (replace(SMALL, t_emb="scaled", t_max_positions=90), 5000),
    "no norm in": (replace(SMALL, t_norm_in=False), 5000),
    "norm in, grouped": (replace(SMALL, t_norm_in=False, t_norm_in_group=1), 5000),
    "grouped norms": (replace(SMALL, t_group_norm=1), 5000),
    "norms last": (replace(SMALL, t_norm_first=False), 5000),
    "no norm out": (replace(SMALL, t_norm_out=False), 5000),
    "no layer scale": (replace(SMALL, t_layer_scale=False), 5000),
    "relu": (replace(SMALL, t_gelu=False), 5000),
    "light positions, short period": (
        replace(SMALL, t_weight_pos_embed=0.5, t_max_period=100.0),
        5000,
    ),
    "cross first": (replace(SMALL, t_cross_first=True), 5000),
}


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """The reference's fused path rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def arguments_of(config: HTDemucsConfig) -> dict[str, Any]:
    """The reference's constructor arguments."""
    arguments = asdict(config)
    rate_hz, frames = arguments.pop("sample_rate_hz"), arguments.pop("segment_frames")
    return {
        **arguments,
        "sources": list(config.sources),
        "multi_freqs": list(config.multi_freqs),
        "growth": int(config.growth),
        "end_iters": config.wiener_iters,
        "samplerate": rate_hz,
        "segment": Fraction(frames, rate_hz),
    }


def reference_of(config: HTDemucsConfig) -> torch.nn.Module:
    """The reference network."""
    reference = pytest.importorskip("demucs.htdemucs")
    network: torch.nn.Module = reference.HTDemucs(**arguments_of(config))
    return network.eval()


def pair(config: HTDemucsConfig) -> tuple[torch.nn.Module, HTDemucs]:
    """The reference and our network, with the same weights, in which every part matters."""
    torch.manual_seed(3)
    reference = reference_of(config)
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            if key.endswith(".scale"):
                parameter.uniform_(0.1, 0.6)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "crosstransformer" not in key and ".layers." not in key:
                parameter.mul_(1.5)  # convolutions
    network = HTDemucs(config).eval()
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
    assert expected.abs().max() > 1e-3
    relative = float((expected - actual).abs().max() / expected.abs().max())
    print(f"{case}: largest difference {relative:.1e} of the peak")
    assert relative <= 1e-5


@pytest.mark.parametrize("stems", [[0], [3], [2, 0], [1, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize(
    "case",
    ["whole segment", "normalised", "bands", "masks", "masks, mixture's phase", "masks, wiener"],
)
def test_wanted_stems_are_a_slice_of_all(case: str, stems: Sequence[int]) -> None:
    _, network = pair(PARITY_CASES[case][0])
    mixture = torch.randn(1, 2, 3001)
    with torch.no_grad():
        everything, wanted = network(mixture), network(mixture, stems)
    assert wanted.shape == (1, len(stems), 2, 3001)
    torch.testing.assert_close(wanted, everything[:, list(stems)], rtol=1e-5, atol=1e-6)


def test_lengths_follow_one_another() -> None:
    """What is remembered for one length does not leak into the next."""
    reference, network = pair(FREE)
    for frames in (3000, 700, 3000, 5000, 1):
        mixture = torch.randn(1, 2, frames)
        with torch.no_grad():
            expected, actual = reference(mixture), network(mixture)
        assert float((expected - actual).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("config", [SMALL, FREE], ids=["training length", "any length"])
def test_valid_length_equals_the_reference(config: HTDemucsConfig) -> None:
    reference, network = reference_of(config), HTDemucs(config)
    for frames in (1, 255, 256, 4999, 5000):
        assert network.valid_length(frames) == reference.valid_length(frames)  # type: ignore[operator]


def test_longer_than_in_training() -> None:
    network = HTDemucs(SMALL).eval()
    for call in (network.valid_length, lambda frames: network(torch.zeros(1, 2, frames))):
        with pytest.raises(ValueError, match="5001 frames are more than the 5000"):
            call(5001)
    assert HTDemucs(FREE).valid_length(5001) == 5001


@pytest.mark.parametrize("frames", [1, 300, 5000])
def test_silence_stays_finite(frames: int) -> None:
    _, network = pair(SMALL)
    with torch.no_grad():
        stems = network(torch.zeros(1, 2, frames))
    assert stems.shape[-1] == frames
    assert torch.isfinite(stems).all()


def test_published_shapes() -> None:
    """The arguments that the published files carry make networks of the published sizes."""
    published = {"segment": Fraction(39, 5), "dconv_mode": 3, "t_layers": 5, "t_dropout": 0.02}
    four = ["drums", "bass", "other", "vocals"]
    with torch.device("meta"):
        network = HTDemucs(
            HTDemucsConfig.from_reference({**published, "sources": four, "bottom_channels": 512})
        )
        six = HTDemucs(
            HTDemucsConfig.from_reference({**published, "sources": [*four, "guitar", "piano"]})
        )
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.config.segment_frames == 343_980
    assert len(network.state_dict()) == 533
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 42.0
    assert round(sum(p.numel() for p in six.parameters()) / 1e6, 1) == 27.4


def test_reference_arguments() -> None:
    """All of them, as the reference would be called with them."""
    for case in ("whole segment", "bands", "grouped norms", "masks, wiener"):
        config, _ = PARITY_CASES[case]
        assert HTDemucsConfig.from_reference(arguments_of(config)) == config
    config = HTDemucsConfig.from_reference(
        {
            "sources": ["a"],
            "multi_freqs": None,
            "freq_emb": None,
            "t_norm_in_group": False,
            "t_group_norm": True,
            "t_sparse_self_attn": False,
            "t_lr": None,
            "t_cape_glob_loc_scale": [5000.0, 1.0, 1.4],
            "from_the_future": object(),
        }
    )
    assert (config.t_norm_in_group, config.t_group_norm) == (0, 1)
    assert (config.multi_freqs, config.freq_emb) == ((), 0.0)


def test_config_round_trip() -> None:
    for config in (SMALL, SPLIT, replace(FREE, channels_time=8)):
        assert HTDemucsConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", ["t_sparse_self_attn", "t_sparse_cross_attn"])
def test_sparse_attention_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: sparse attention is not supported"):
        HTDemucsConfig.from_reference({"sources": ["a"], name: True})


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"depth": 0},
        {"depth": 100},
        {"nfft": 1000, "depth": 4},
        {"t_layers": -1},
        {"t_layers": 1000},
        {"t_heads": 3},
        {"t_heads": 0},
        {"t_emb": "rotary"},
        {"t_hidden_scale": 1e300},
        {"t_group_norm": 5},
        {"bottom_channels": -4},
        {"bottom_channels": 18},
        {"channels_time": 4},
        {"nfft": 256, "depth": 4},
        {"nfft": 512, "depth": 4, "t_layers": 0},
        {"surprise": 1},
        {"channels": "many"},
        {"use_train_segment": "yes"},
    ],
)
def test_config_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        HTDemucsConfig.from_dict({**SMALL.to_dict(), **change})
    assert "\n" not in str(caught.value)
