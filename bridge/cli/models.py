"""``stembridge models list``."""

from __future__ import annotations

from argparse import Namespace

from bridge.cli.console import print_json, print_table
from models.registry import DEFAULT_MODEL, list_models


def run(options: Namespace) -> None:
    """Run the command."""
    cards = list_models()
    if options.json:
        print_json(
            {
                "default": DEFAULT_MODEL,
                "models": [
                    {
                        "name": card.name,
                        "architecture": card.architecture,
                        "stems": card.stems,
                        "sample_rate_hz": card.sample_rate_hz,
                        "licence": card.licence,
                        "path": card.weights_path,
                        "description": card.description,
                    }
                    for card in cards
                ],
            }
        )
        return
    print_table(
        ("model", "stems", "rate", "size", "licence", "what it is"),
        [
            (
                card.name + (" (default)" if card.name == DEFAULT_MODEL else ""),
                ", ".join(card.stems),
                f"{card.sample_rate_hz} Hz",
                f"{card.weights_path.stat().st_size / 1e6:.1f} MB",
                card.licence,
                card.description,
            )
            for card in cards
        ],
    )
