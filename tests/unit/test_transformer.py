"""The cross-domain transformer against the public reference implementation, and on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.transformer import CrossTransformer, TransformerConfig

SMALL = TransformerConfig(dim=32, heads=4, hidden_scale=2.0, layers=3)

# What version 4 was trained with, and every other thing that an option can say.
CASES = {
    "published": SMALL,
    "cape": replace(SMALL, emb="cape"),
    "cape from zero": replace(SMALL, emb="cape", cape_mean_normalize=False),
    "learned positions": replace(SMALL, emb="scaled", max_positions=64),
    "light positions, short period": replace(SMALL, weight_pos_embed=0.3, max_period=100.0),
    "no norm in": replace(SMALL, norm_in=False),
    "norm in, grouped": replace(SMALL, norm_in=False, norm_in_group=2),
    "norm in, one group": replace(SMALL, norm_in=False, norm_in_group=1),
    "one group": replace(SMALL, group_norm=1),
    "four groups": replace(SMALL, group_norm=4),
    "norm last": replace(SMALL, norm_first=False),
    "norm last, grouped": replace(SMALL, norm_first=False, group_norm=1),
    "no norm out": replace(SMALL, norm_out=False),
    "no scale": replace(SMALL, layer_scale=False),
    "relu": replace(SMALL, gelu=False),
    "cross first": replace(SMALL, cross_first=True, layers=4),
    "one layer": replace(SMALL, layers=1),
    "one layer, cross": replace(SMALL, layers=1, cross_first=True),
}


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """The reference's fused path rounds differently."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def reference_of(config: TransformerConfig) -> torch.nn.Module:
    """The reference's encoder with weights in which every branch matters."""
    reference = pytest.importorskip("demucs.transformer")
    options: dict[str, Any] = {
        "num_layers": config.layers,
        "num_heads": config.heads,
        "sin_random_shift": 0,
    }
    for name in config.__dataclass_fields__:
        if name not in ("layers", "heads"):
            options[name] = getattr(config, name)
    torch.manual_seed(4)
    network: torch.nn.Module = reference.CrossTransformerEncoder(**options)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("scale"):
                parameter.uniform_(0.1, 0.6)
            elif "norm" in key or key.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str) -> None:
    config = CASES[case]
    reference = reference_of(config)
    network = CrossTransformer(config).eval()
    network.load_state_dict(reference.state_dict())
    # Twice the first shape: the second time, positions are remembered.
    for batch, bands, hops, steps in [(2, 4, 5, 37), (2, 4, 5, 37), (1, 4, 9, 50), (1, 1, 1, 1)]:
        x, xt = torch.randn(batch, 32, bands, hops), torch.randn(batch, 32, steps)
        with torch.no_grad():
            expected, actual = reference(x, xt), network(x, xt)
        for one, other in zip(expected, actual, strict=True):
            assert one.shape == other.shape
            assert float((one - other).abs().max() / one.abs().max()) <= 1e-5


def test_every_parameter_matters() -> None:
    """Moving any of them moves the output: nothing is loaded and then left unused."""
    reference = reference_of(SMALL)
    network = CrossTransformer(SMALL).eval()
    network.load_state_dict(reference.state_dict())
    x, xt = torch.randn(1, 32, 2, 3), torch.randn(1, 32, 7)
    with torch.no_grad():
        before = torch.cat([part.flatten() for part in network(x, xt)])
        for key, parameter in network.named_parameters():
            kept = parameter.clone()
            parameter.add_(0.1 * torch.randn_like(parameter))
            after = torch.cat([part.flatten() for part in network(x, xt)])
            parameter.copy_(kept)
            assert (after - before).abs().max() > 1e-6, key


def test_more_steps_than_positions() -> None:
    network = CrossTransformer(replace(SMALL, emb="scaled", max_positions=8)).eval()
    with pytest.raises(ValueError, match=r"9 steps.*8 positions"):
        network(torch.randn(1, 32, 1, 1), torch.randn(1, 32, 9))


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        network = CrossTransformer(replace(SMALL, dim=4096, hidden_scale=4.0))
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"emb": "rotary"},
        {"heads": 5},
        {"heads": 0},
        {"dim": 30, "heads": 2},
        {"dim": 0},
        {"layers": 0},
        {"layers": 65},
        {"group_norm": 5},
        {"norm_in_group": -1},
        {"hidden_scale": 0.0},
        {"max_period": float("nan")},
        {"max_positions": 0},
    ],
)
def test_config_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        replace(SMALL, **change)
    assert "\n" not in str(caught.value)
