"""``stembridge models``: what is there, what can be had, and its coming and going."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from bridge.cli.console import ProgressBar, print_json, print_line, print_table
from bridge.errors import BridgeError
from models.cards import BagCard, Card
from models.catalogue import OFFICIAL_MODELS, OfficialModel, official_model
from models.errors import UnknownModel
from models.fetch import fetch
from models.registry import DEFAULT_MODEL, best_installed, find, list_models, users_folder
from models.speeds import speeds
from models.store import convert, install, remove, size_bytes


class _Interrupted(BridgeError):
    """Fetching was interrupted; unlike elsewhere, something is kept."""

    exit_code = 130


def run(options: Namespace) -> None:
    """Run the command."""
    {
        "list": _list,
        "fetch": _fetch,
        "import": _import,
        "convert": _convert,
        "remove": _remove,
        "info": _info,
    }[options.action](options)


def _list(options: Namespace) -> None:
    cards = list_models()
    installed = [_of_card(card) for card in cards]
    auto = _auto(cards)
    names = {entry["name"] for entry in installed}
    entries = installed + [
        _of_official(model) for model in OFFICIAL_MODELS.values() if model.name not in names
    ]
    if options.json:
        print_json(
            {
                "default": DEFAULT_MODEL,
                "auto": auto,
                "folder": users_folder(),
                "models": entries,
                "presets": _presets(),
            }
        )
        return
    print_table(
        ("model", "installed", "stems", "size", "licence", "speed here", "what it is"),
        [
            (
                entry["name"] + (" (auto)" if entry["name"] == auto else ""),
                _installed_words(entry),
                ", ".join(entry["stems"]),
                _size_words(entry),
                entry["licence"],
                _speed_words(entry["speed"]),
                f"cannot be used: {entry['refused']}" if entry["refused"] else entry["description"],
            )
            for entry in entries
        ],
    )
    print_line("Get one by 'stembridge models fetch NAME'; speed is work per second of audio.")
    print_table(
        ("preset", "model", "shifts", "overlap", "cost", "what it is for"),
        [
            (
                preset["name"],
                preset["model"],
                str(preset["shifts"]),
                f"{preset['overlap']:g}",
                f"{preset['relative_cost']:.3g}",
                preset["description"],
            )
            for preset in _presets()
        ],
    )


def _fetch(options: Namespace) -> None:
    official_model(options.name)  # a mistake is told before a bar is drawn
    try:
        with ProgressBar() as bar:
            card = fetch(
                options.name,
                lambda phase, done, total: bar.update(phase, done, total or max(done, 1)),
                bar.note,
            )
    except KeyboardInterrupt:
        raise _Interrupted(
            "cancelled; what was received is kept, and the same command goes on from there"
        ) from None
    _report(card, "is installed", options)


def _import(options: Namespace) -> None:
    _report(install(options.file, options.name), "is installed", options)


def _convert(options: Namespace) -> None:
    card = convert(options.file, options.output, options.name)
    _report(card, f"is written to {options.output}", options)


def _remove(options: Namespace) -> None:
    freed_bytes = remove(options.name)
    if options.json:
        print_json({"name": options.name, "freed_bytes": freed_bytes})
    else:
        print_line(f"{options.name} is removed; {freed_bytes / 1e6:.1f} MB are free again")


def _info(options: Namespace) -> None:
    try:
        card = find(options.name)
    except UnknownModel:
        if options.name not in OFFICIAL_MODELS:
            raise
        entry = _of_official(OFFICIAL_MODELS[options.name])
    else:
        entry = _of_card(card) | _details(card)
    if options.json:
        print_json(entry)
        return
    for key, value in entry.items():
        if value in (None, "", [], (), {}):
            continue
        print_line(f"{key.removesuffix('_bytes').replace('_', ' ')}: {_words(key, value)}")


def _report(card: Card, outcome: str, options: Namespace) -> None:
    if options.json:
        print_json(_of_card(card))
    else:
        print_line(f"{card.name} {outcome}: {', '.join(card.stems)}; {card.licence}")


def _of_card(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "installed": True,
        "architecture": "bag" if isinstance(card, BagCard) else card.architecture,
        "stems": card.stems,
        "sample_rate_hz": card.sample_rate_hz,
        "size_bytes": size_bytes(card),
        "licence": card.licence,
        "speed": speeds().get(card.name),
        "refused": None,
        "path": card.path if isinstance(card, BagCard) else card.weights_path,
        "description": card.description,
    }


def _of_official(model: OfficialModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "installed": False,
        "architecture": None,
        "stems": model.stems,
        "sample_rate_hz": 44100,
        "size_bytes": model.size_bytes,
        "licence": model.licence,
        "speed": speeds().get(model.name),
        "refused": model.refused,
        "path": None,
        "description": model.description,
        "trained_on": model.trained_on,
        "link": model.link,
    }


def _details(card: Card) -> dict[str, Any]:
    segment_frames = card.segment_frames
    details = {
        "audio_channels": card.audio_channels,
        "segment_seconds": segment_frames and round(segment_frames / card.sample_rate_hz, 3),
        "data": card.data,
        "training": card.training,
        "scores": card.scores,
        "not_good_for": card.not_good_for,
    }
    if isinstance(card, BagCard):
        details["members"] = [
            {"name": member.card_name.removesuffix(".json"), "weights": member.weights}
            for member in card.members
        ]
    return details


def _auto(cards: list[Card]) -> str | None:
    try:
        return best_installed(cards)
    except UnknownModel:
        return None


def _presets() -> list[dict[str, Any]]:
    from bridge.separator.presets import PRESETS  # noqa: PLC0415 - imports numpy

    return [
        {
            "name": preset.name,
            "model": preset.model,
            "shifts": preset.shifts,
            "overlap": preset.overlap,
            "relative_cost": preset.relative_cost,
            "description": preset.description,
        }
        for preset in PRESETS.values()
    ]


def _installed_words(entry: dict[str, Any]) -> str:
    if entry["refused"]:
        return "cannot be"
    return "yes" if entry["installed"] else "no"


def _size_words(entry: dict[str, Any]) -> str:
    if entry["size_bytes"] is None:
        return "not known"
    about = "" if entry["installed"] else "about "
    return f"{about}{entry['size_bytes'] / 1e6:.{1 if entry['installed'] else 0}f} MB"


def _speed_words(speed: dict[str, Any] | None) -> str:
    return "" if speed is None else f"{speed['real_time_factor']:.2f} ({speed['device']})"


def _words(key: str, value: Any) -> str:
    if key == "size_bytes":
        return f"{value / 1e6:.1f} MB"
    if key == "speed":
        return _speed_words(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
