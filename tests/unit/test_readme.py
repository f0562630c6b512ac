"""The README's tables, held against the code."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from bridge.cli.parser import build_parser
from bridge.separator.presets import PRESETS
from models.registry import find

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table whose first heading cell is ``heading``."""
    lines = README.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(action.choices)


def helps() -> dict[str, str]:
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return {choice.dest: choice.help or "" for choice in action._choices_actions}


def test_commands() -> None:
    told = {cells[0].strip("`").removeprefix("stembridge "): cells[1] for cells in table("command")}
    assert told == helps()


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {name: action for action in parser._actions for name in action.option_strings}


def test_options_and_their_defaults() -> None:
    rows = table("option of `separate` and `render`")
    told = {name: cells[1] for cells in rows for name in re.findall(r"`(--[a-z-]+)`", cells[0])}
    shared = options_of(commands()["separate"]).keys() & options_of(commands()["render"]).keys()
    assert told.keys() == {n for n in shared if n.startswith("--")} - {"--help", "--output"}
    for command in ("separate", "render"):
        for name, default in told.items():
            real = options_of(commands()[command])[name].default
            if isinstance(real, bool):
                real = "on" if real else "off"
            assert real is None or default.strip("`") == str(real), name


def test_every_other_option_is_named() -> None:
    for parser in commands().values():
        for name in options_of(parser).keys() - {"-h", "-o", "--help", "--snapshot"}:
            assert f"`{name}`" in README, name


def test_formats() -> None:
    choices = options_of(commands()["separate"])["--format"].choices
    assert choices is not None
    assert all(f"`{choice}`" in README for choice in choices)


def test_performance_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "examples" / "compare.json").read_text())
    told = {cells[0]: cells[1:] for cells in table("60 s of stereo")}
    assert told == {
        row["model"]: [
            f"{row['wall']:.2f}",
            f"{row['cpu']:.2f}",
            f"{row['memory']:.2f}",
            f"{row['difference']:.0e}",
        ]
        for row in measured["rows"]
    }
    assert measured["date"] in README
    assert measured["seconds"] == 60


def test_presets() -> None:
    rows = table("preset of `--quality`")
    told = {cells[0].strip("`"): (int(cells[2]), *map(float, cells[3:])) for cells in rows}
    assert told == {
        preset.name: (preset.shifts, preset.overlap, round(preset.relative_cost, 2))
        for preset in PRESETS.values()
    }


def test_actions_of_models() -> None:
    (action,) = (
        action
        for action in commands()["models"]._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    told = [cells[0].strip("`").split()[0] for cells in table("action of `stembridge models`")]
    assert told == list(action.choices)


def test_scores_are_the_cards() -> None:
    told = {cells[0]: [float(cell) for cell in cells[1:]] for cells in table("on unseen songs")}
    methods = {
        "stembridge-small": "model",
        "high-pass, low-pass, repetition": "classic",
        "a quarter of the mixture": "mixture/4",
        "ideal mask (needs the true stems)": "oracle mask",
    }
    scores = find("stembridge-small").scores["unseen"]
    stems = ("drums", "bass", "other", "vocals")
    assert told == {
        words: [round(scores[method][stem]["median"], 1) for stem in stems]
        for words, method in methods.items()
    }


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_rooms_exist() -> None:
    for cells in table("room"):
        for room in re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", cells[0]):
            assert (ROOT / room).exists() or (ROOT / f"{room}.py").exists(), room
