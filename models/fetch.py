"""Public models from the network into the user's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from models.adopt import adopt_known
from models.cards import Card
from models.catalogue import OfficialModel, mirrors, official_model
from models.download import FetchError, download
from models.registry import list_models, users_folder
from models.store import folder_errors, install, is_whole, locked

__all__ = ["DOWNLOADS", "FetchError", "Progress", "fetch"]

DOWNLOADS = "downloads"  # folder in the user's folder

Progress: TypeAlias = Callable[[str, int, int | None], None]


def fetch(
    name: str,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Card:
    """Bring a public model into the user's folder, unless it is there and whole.

    Two programs that fetch at the same time take turns, and the second finds what the first has
    brought. Interrupted in any way, the next call goes on where this one was.

    Parameters
    ----------
    name : str
        One of :data:`models.catalogue.OFFICIAL_MODELS`.
    progress : callable, optional
        Called with a file's signature, the bytes that are there, and all bytes or None.
    note : callable, optional
        Called with lines on what is waited for, and on addresses that did not help.

    Raises
    ------
    UnknownModel, ModelError
        There is no such model, or it cannot be used.
    FetchError
        It could not be had; one line.
    """
    model = official_model(name)
    addresses = mirrors()
    folder = users_folder()
    if there := _installed(name):
        return there

    def waiting() -> None:
        if note is not None:
            note("another program is fetching; waiting for it")

    with folder_errors(folder), locked(folder, "fetch", waiting):
        if there := _installed(name):  # by the other program, meanwhile
            return there
        downloads = folder / DOWNLOADS
        try:
            _fetch_files(model, addresses, downloads, progress, note)
            card = install(adopt_known(model, downloads))
            for file in model.distinct_files:
                (downloads / file.name).unlink(missing_ok=True)
        finally:
            with suppress(OSError):  # unfinished files may be in it
                downloads.rmdir()
        return card


def _installed(name: str) -> Card | None:
    return next((card for card in list_models() if card.name == name and is_whole(card)), None)


def _fetch_files(
    model: OfficialModel,
    addresses: Sequence[str],
    downloads: Path,
    progress: Progress | None,
    note: Callable[[str], None] | None,
) -> None:
    for file in model.distinct_files:

        def tell(done_bytes: int, total_bytes: int | None, phase: str = file.signature) -> None:
            if progress is not None:
                progress(phase, done_bytes, total_bytes)

        download(
            [f"{address}{file.folder}{file.name}" for address in addresses],
            downloads / file.name,
            file.sha256_prefix,
            tell,
            note,
        )
