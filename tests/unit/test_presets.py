"""The presets, and what the command line makes of them."""

from __future__ import annotations

import pytest

from bridge.cli.parser import QUALITIES, build_parser
from bridge.cli.separate import separation_options
from bridge.separator import SeparationOptions
from bridge.separator.presets import DEFAULT_PRESET, PRESETS
from models.registry import find


def test_the_command_line_takes_each() -> None:
    assert tuple(PRESETS) == QUALITIES
    options = build_parser().parse_args(["separate", "a.wav", "-o", "out"])
    assert options.quality == DEFAULT_PRESET


def test_each_costs_more_than_the_one_before() -> None:
    costs = [preset.relative_cost for preset in PRESETS.values()]
    assert costs == sorted(set(costs))
    assert PRESETS[DEFAULT_PRESET].relative_cost == 1
    assert PRESETS["preview"].relative_cost == pytest.approx(0.75 / 0.9)
    assert PRESETS["best"].relative_cost == pytest.approx(2)


def test_a_preview_needs_nothing_fetched() -> None:
    assert find(PRESETS["preview"].model).name == PRESETS["preview"].model


@pytest.mark.parametrize(
    "command", [["separate", "a.wav", "-o", "b"], ["render", "s", "--track=T"]]
)
@pytest.mark.parametrize("quality", [None, *QUALITIES])
def test_what_is_said_wins_over_the_preset(command: list[str], quality: str | None) -> None:
    chosen = [] if quality is None else ["--quality", quality]
    preset = PRESETS[quality or DEFAULT_PRESET]
    parse = build_parser().parse_args
    assert separation_options(parse([*command, *chosen])) == SeparationOptions(
        shifts=preset.shifts, overlap=preset.overlap
    )
    said = parse([*command, *chosen, "--shifts", "0", "--overlap", "0"])
    assert separation_options(said) == SeparationOptions(shifts=0, overlap=0)
