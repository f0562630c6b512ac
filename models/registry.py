"""From a model's name to a model that is ready to run.

Models are looked for in this package's ``weights`` folder and then in the folders of the
environment variable ``STEMBRIDGE_MODELS`` (several are separated as in ``PATH``). Listing reads
cards only; torch is imported when weights are loaded.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.cards import ModelCard, read_card
from models.errors import CheckpointError, ModelError, UnknownModel

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DEFAULT_MODEL",
    "FOLDERS_VARIABLE",
    "Bundle",
    "ModelCard",
    "find",
    "list_models",
    "load",
]

DEFAULT_MODEL = "stembridge-small"
FOLDERS_VARIABLE = "STEMBRIDGE_MODELS"
SHIPPED_FOLDER = Path(__file__).parent / "weights"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A loaded model: its card and its network, in evaluation mode on its device."""

    card: ModelCard
    network: nn.Module

    def valid_frames(self, frames: int) -> int:
        """Return the least input length of at least ``frames`` that the network takes as it is."""
        valid_length = getattr(self.network, "valid_length", None)
        return frames if valid_length is None else int(valid_length(frames))

    def separate_segment(self, mixture: Tensor) -> Tensor:
        """Estimate the stems of a segment.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, at the card's sample rate and
            channel count, on any device.

        Returns
        -------
        Tensor
            (batch, stems, channels, frames), float32, on the mixture's device.
        """
        import torch  # noqa: PLC0415 - heavy, and not needed to list models

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            stems: Tensor = self.network(mixture.to(device))
        return stems.to(mixture.device)


def list_models() -> list[ModelCard]:
    """Read the cards of all installed models, shipped ones first; broken cards are logged."""
    cards: dict[str, ModelCard] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*.json")):
            try:
                card = read_card(path)
            except CheckpointError as error:
                logger.warning("%s", error)
                continue
            if card.name in cards:
                logger.warning(
                    "%s is left out: %s is already called %s",
                    path,
                    cards[card.name].weights_path.parent,
                    card.name,
                )
                continue
            cards[card.name] = card
    return list(cards.values())


def find(name_or_path: str | Path) -> ModelCard:
    """Find the card of a model.

    Parameters
    ----------
    name_or_path : str or Path
        The name of an installed model, or a path: a card, the weights beside it, or a folder
        with one card in it.

    Raises
    ------
    UnknownModel
        There is no such name and no such path; the message lists the known names.
    CheckpointError
        The path is there but is not a usable model.
    """
    cards = list_models()
    for card in cards:
        if card.name == str(name_or_path):
            return card
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            raise CheckpointError(
                f"{path} holds {len(found)} model cards (.json); name one of them"
            )
        return read_card(found[0])
    if path.is_file():
        if path.suffix == ".json":
            return read_card(path)
        if path.suffix == ".safetensors":
            return _card_of_weights(path)
        raise CheckpointError(f"{path} is not a model: give a model's card (.json)")
    known = ", ".join(card.name for card in cards) or "none is installed"
    raise UnknownModel(
        f"there is no model {str(name_or_path)!r}; known: {known}; or give the path of a"
        " model's card (.json)"
    )


def load(name_or_path: str | Path = DEFAULT_MODEL, device: str = "cpu") -> Bundle:
    """Load a model onto a device.

    Raises
    ------
    UnknownModel, CheckpointError
        As :func:`find`, and where the weights cannot be trusted.
    ModelError
        The device cannot be used.
    """
    card = find(name_or_path)
    from models.checkpoints import load_network  # noqa: PLC0415 - heavy: imports torch

    network = load_network(card)
    try:
        network = network.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the device {device!r} cannot be used: {reason}; try cpu") from None
    return Bundle(card, network)


def _card_of_weights(path: Path) -> ModelCard:
    card_path = path.with_suffix(".json")
    if not card_path.is_file():
        raise CheckpointError(f"{path} has no card beside it; {card_path.name} is missing")
    card = read_card(card_path)
    if card.weights_path.name != path.name:
        raise CheckpointError(f"{card_path} describes {card.weights_path.name}, not {path.name}")
    return card


def _folders() -> list[Path]:
    extra = os.environ.get(FOLDERS_VARIABLE, "")
    return [SHIPPED_FOLDER, *(Path(part).expanduser() for part in extra.split(os.pathsep) if part)]
