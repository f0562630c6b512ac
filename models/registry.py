"""From a model's name to a model that is ready to run.

Models are looked for in this package's ``weights`` folder, then in the folders of the environment
variable ``STEMBRIDGE_MODELS`` (several are separated as in ``PATH``), then in the user's own data
folder. Listing reads cards only; torch is imported when weights are loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from models import catalogue
from models.adopt import is_official
from models.bundle import Bundle, Member, card_of_official, load_card, load_official, member_cards
from models.cards import BagCard, Card, ModelCard, read_card
from models.errors import CheckpointError, UnknownModel

__all__ = [
    "DEFAULT_MODEL",
    "FOLDERS_VARIABLE",
    "BagCard",
    "Bundle",
    "Card",
    "Member",
    "ModelCard",
    "best_installed",
    "find",
    "list_models",
    "load",
    "member_cards",
    "users_folder",
]

DEFAULT_MODEL = "stembridge-small"
FOLDERS_VARIABLE = "STEMBRIDGE_MODELS"
SHIPPED_FOLDER = Path(__file__).parent / "weights"

logger = logging.getLogger(__name__)


def users_folder() -> Path:
    """Return the folder that models are installed into; it may not be there yet.

    The first of ``STEMBRIDGE_MODELS`` if that is set, else the user's data folder by the
    platform's convention.
    """
    return next(iter(_named_folders()), None) or _data_folder()


def list_models() -> list[Card]:
    """Read the cards of all installed models, shipped ones first; broken cards are logged.

    Networks that only serve bags are left out.
    """
    cards: dict[str, Card] = {}
    for folder in _folders():
        for path in sorted(folder.glob("[!.]*.json")):
            try:
                card = read_card(path)
            except CheckpointError as error:
                logger.warning("%s", error)
                continue
            if isinstance(card, ModelCard) and card.member_only:
                continue
            if card.name in cards:
                logger.warning(
                    "%s is left out: %s is already called %s",
                    path,
                    cards[card.name].path.parent,
                    card.name,
                )
                continue
            cards[card.name] = card
    return list(cards.values())


def best_installed(cards: Sequence[Card] | None = None, *, bags: bool = True) -> str:
    """Name the best installed model of four stems, by :data:`models.catalogue.RANKING`.

    Parameters
    ----------
    cards : sequence of ModelCard or BagCard, optional
        What to choose from, by default :func:`list_models`.
    bags : bool
        Whether it may be a bag of several networks.

    Raises
    ------
    UnknownModel
        No such model is installed.
    """
    installed = {
        card.name
        for card in (list_models() if cards is None else cards)
        if sorted(card.stems) == sorted(catalogue.FOUR_STEMS)
        and (bags or not isinstance(card, BagCard))
    }
    for name in (*catalogue.RANKING, *sorted(installed)):
        if name in installed:
            return name
    raise UnknownModel(
        "no model of four stems is installed; get one by 'stembridge models fetch htdemucs'"
    )


def find(name_or_path: str | Path) -> Card:
    """Find the card of a model.

    Parameters
    ----------
    name_or_path : str or Path
        The name of an installed model, or a path: a card, the weights beside it, a folder with
        one listed card in it, a public checkpoint (``.th``, or a ``.safetensors`` that brings its
        own description), or a bag's ``.yaml`` whose members lie beside it.

    Raises
    ------
    UnknownModel
        There is no such name and no such path; the message lists the known names.
    CheckpointError
        The path is there but is not a usable model.
    """
    found = _locate(name_or_path)
    return card_of_official(found) if isinstance(found, Path) else found


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str = "cpu",
    stems: Sequence[str] | None = None,
) -> Bundle:
    """Load a model onto a device.

    Parameters
    ----------
    name_or_path : str or Path
        As for :func:`find`.
    device : str
        A device of torch.
    stems : sequence of str, optional
        The wanted stems; members of a bag that have no weight for any of them are not read.

    Raises
    ------
    UnknownModel, CheckpointError
        As :func:`find`, and where the weights cannot be trusted.
    ModelError
        The device cannot be used, or the model has no such stem.
    """
    found = _locate(name_or_path)
    if isinstance(found, Path):
        return load_official(found, device, stems)
    return load_card(found, device, stems)


def _locate(name_or_path: str | Path) -> Card | Path:
    """Find a model's card, or the path of an official file that has none."""
    cards = list_models()
    for card in cards:
        if card.name == str(name_or_path):
            return card
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _card_of_folder(path)
    if path.is_file():
        if path.suffix == ".json":
            return read_card(path)
        beside = path.with_suffix(".json")
        if path.suffix == ".safetensors" and beside.is_file():
            return _card_of_weights(path, beside)
        if is_official(path):
            return path
        raise CheckpointError(
            f"{path} is not a model: give a model's card (.json), or a public checkpoint (.th,"
            " .safetensors) or bag (.yaml)"
        )
    known = ", ".join(card.name for card in cards) or "none is installed"
    fetch = ""
    official = catalogue.OFFICIAL_MODELS.get(str(name_or_path))
    if official is not None and official.refused is None:
        fetch = f"; 'stembridge models fetch {official.name}' gets it"
    raise UnknownModel(
        f"there is no model {str(name_or_path)!r} here; known: {known}"
        + (fetch or "; or give the path of a model's card (.json)")
    )


def _card_of_folder(folder: Path) -> Card:
    paths = sorted(folder.glob("[!.]*.json"))
    cards = [read_card(path) for path in paths] if len(paths) > 1 else []
    listed = [
        path
        for path, card in zip(paths, cards, strict=False)
        if not (isinstance(card, ModelCard) and card.member_only)
    ]
    found = listed or paths
    if len(found) != 1:
        raise CheckpointError(f"{folder} holds {len(found)} model cards (.json); name one of them")
    return read_card(found[0])


def _card_of_weights(path: Path, card_path: Path) -> ModelCard:
    card = read_card(card_path)
    if not isinstance(card, ModelCard) or card.weights_path.name != path.name:
        told = card.weights_path.name if isinstance(card, ModelCard) else "a bag"
        raise CheckpointError(f"{card_path} describes {told}, not {path.name}")
    return card


def _folders() -> list[Path]:
    return list(dict.fromkeys((SHIPPED_FOLDER, *_named_folders(), _data_folder())))


def _named_folders() -> list[Path]:
    parts = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    return [Path(part).expanduser() for part in parts if part]


def _data_folder() -> Path:
    import platformdirs  # noqa: PLC0415 - what is shipped can be listed without it

    return platformdirs.user_data_path("stembridge", appauthor=False) / "models"
