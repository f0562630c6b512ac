"""The user's folder of models: what comes in, what goes out, what was measured.

A model is its card and its weights, ``NAME.json`` and ``NAME.safetensors``; the card comes last
and goes first, so that whatever is listed is whole. A bag is a card and its members', which are
shared with other bags in the folder.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from models.adopt import Adopted, AdoptedMember, adopt, is_official
from models.bundle import check_member, member_cards
from models.cards import NAME_PATTERN, BagCard, Card, ModelCard, read_card, write_card
from models.errors import CheckpointError, ModelError, UnknownModel
from models.registry import list_models, users_folder
from models.speeds import record_speed, speeds

__all__ = [
    "convert",
    "files_of",
    "folder_errors",
    "install",
    "is_whole",
    "locked",
    "record_speed",
    "remove",
    "size_bytes",
    "speeds",
    "users_folder",
]


def install(source: Path | Adopted, name: str | None = None) -> Card:
    """Bring a public checkpoint, a bag of them or a model of ours into the user's folder.

    What is there already and whole stays as it is; damaged weights are replaced.

    Parameters
    ----------
    source : Path or Adopted
        A ``.th`` or ``.safetensors`` file, a bag's ``.yaml``, or a model's card; or a model that
        was looked into before.
    name : str, optional
        What to call it; by default what the catalogue calls it, or the file's own name.

    Returns
    -------
    ModelCard or BagCard
        As installed. Nothing lies under a final name that is not whole.

    Raises
    ------
    CheckpointError
        The file cannot be trusted.
    ModelError
        The name is taken by another model, or the folder cannot be written.
    """
    folder = users_folder()
    with folder_errors(folder), locked(folder, "models"):
        return _bring(source, name, folder, list_models())


def convert(path: Path, folder: Path, name: str | None = None) -> Card:
    """Write a public checkpoint or bag as a card and safetensors files into any folder.

    Raises
    ------
    As :func:`install`.
    """
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return _bring(path, name, folder, [])


def remove(name: str) -> int:
    """Remove a model from the user's folder; a program that runs it goes on undisturbed.

    Members that another bag needs stay.

    Returns
    -------
    int
        Bytes set free.

    Raises
    ------
    UnknownModel
        No such model is there.
    ModelError
        It is shipped with the program, lies in another folder, or a bag needs it.
    """
    folder = users_folder()
    if not folder.is_dir():
        raise _not_removable(name, folder)
    with folder_errors(folder), locked(folder, "models"):
        cards = _cards(folder)
        found = [path for path, card in cards.items() if card.name == name]
        broken = folder / f"{name}.json"
        if not found and NAME_PATTERN.fullmatch(name) and broken.is_file() and broken not in cards:
            return _delete([broken, broken.with_suffix(".safetensors")])
        if not found:
            raise _not_removable(name, folder)
        (path,) = found[:1]
        card = cards.pop(path)
        needed = {
            member.card_name: other.name
            for other in cards.values()
            if isinstance(other, BagCard)
            for member in other.members
        }
        if path.name in needed:
            raise ModelError(f"{name} is part of {needed[path.name]}; remove that first")
        if isinstance(card, ModelCard):
            return _delete([path, card.weights_path])
        # Whatever served only this bag goes, and what an interrupted installation left.
        leaving = [path]
        for member_path, own in cards.items():
            if isinstance(own, ModelCard) and own.member_only and member_path.name not in needed:
                leaving += [member_path, own.weights_path]
        return _delete(leaving)


def files_of(card: Card) -> list[Path]:
    """List a model's files: cards and weights, a bag's members included where they are there."""
    if isinstance(card, ModelCard):
        return [path for path in (card.path, card.weights_path) if path.is_file()]
    files = [card.path]
    for member in card.members:
        member_path = card.path.parent / member.card_name
        try:
            own = read_card(member_path)
        except CheckpointError:
            continue
        if isinstance(own, ModelCard):
            files += [member_path, own.weights_path]
    return [path for path in files if path.is_file()]


def size_bytes(card: Card) -> int:
    """Add up what a model takes on disk."""
    return sum(path.stat().st_size for path in files_of(card))


def is_whole(card: Card) -> bool:
    """Whether all of a model's files are there and its weights are those of the cards."""
    try:
        cards = [card] if isinstance(card, ModelCard) else member_cards(card)
        for own in cards:
            with own.weights_path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != own.weights_sha256:
                    return False
    except (OSError, CheckpointError):
        return False
    return True


@contextmanager
def locked(folder: Path, purpose: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder for one purpose, so that two programs do not work in it at once.

    The lock is the operating system's: it ends with the process that holds it, however that ends.
    `waiting` is called once if another program holds it.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed to list what is shipped

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{purpose}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors in a folder of models into one line."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ModelError(
                f"{folder} has no room left ({error.strerror}); free some and run again"
            ) from None
        raise ModelError(f"cannot write {place}: {error.strerror or error}") from None


def _bring(source: Path | Adopted, name: str | None, folder: Path, installed: list[Card]) -> Card:
    if isinstance(source, Adopted):
        return _adopt(source, folder, installed)
    path = source.expanduser()
    if not path.is_file():
        raise UnknownModel(f"there is no file {path} to read a model from")
    if name is not None and not NAME_PATTERN.fullmatch(name):
        raise ModelError(
            f"{name!r} cannot be a model's name: use letters, digits, dots, dashes, underscores"
        )
    if path.suffix == ".json":
        return _copy(read_card(path), name, folder, installed)
    if is_official(path):
        return _adopt(adopt(path, name), folder, installed)
    raise CheckpointError(
        f"{path} is not a model: give a public checkpoint (.th, .safetensors), a bag (.yaml) or a"
        " model's card (.json)"
    )


def _adopt(adopted: Adopted, folder: Path, installed: list[Card]) -> Card:
    if not adopted.is_bag:
        return _save(adopted, adopted.members[0], folder, installed)
    there = _read_or_none(folder / f"{adopted.name}.json")
    files = [member.path.name for member in adopted.members]
    if not isinstance(there, BagCard) or there.training.get("files") != files:
        _refuse_taken(adopted.name, folder, installed)
    cards = [_save(adopted, member, folder, installed) for member in adopted.members]
    bag = adopted.bag_card(cards[0], folder)
    for card in cards:
        check_member(bag, card, adopted.path)
    _write(bag, folder)
    _take_back_if_unreadable(bag)
    return bag


def _save(
    adopted: Adopted, member: AdoptedMember, folder: Path, installed: list[Card]
) -> ModelCard:
    """Write one file's network, unless it is there already."""
    from models.checkpoints import save_checkpoint  # noqa: PLC0415 - heavy: imports torch

    checkpoint = member.read()
    card = adopted.member_card(member, checkpoint)
    there = _read_or_none(folder / f"{card.name}.json")
    if isinstance(there, ModelCard) and there.training.get("file_sha256") == checkpoint.sha256:
        if is_whole(there):
            if there.member_only and not card.member_only:
                there = replace(there, member_only=False)  # from now on wanted by itself
                _write(there, folder)
            return there
    else:
        # A member is not listed, so only the folder's own files matter to it.
        _refuse_taken(card.name, folder, [] if card.member_only else installed)
    with _whole(folder, card.name):
        saved = save_checkpoint(card, checkpoint.state, folder)
    _take_back_if_unreadable(saved)
    return saved


def _copy(card: Card, name: str | None, folder: Path, installed: list[Card]) -> Card:
    """Copy a model of ours into the folder."""
    name = name or card.name
    _refuse_taken(name, folder, installed)
    if isinstance(card, ModelCard):
        return _copy_network(replace(card, name=name, member_only=False), folder)
    own_cards = member_cards(card)
    for own in own_cards:
        there = _read_or_none(folder / f"{own.name}.json")
        if isinstance(there, ModelCard) and there.weights_sha256 == own.weights_sha256:
            continue
        _refuse_taken(own.name, folder, [])
        _copy_network(replace(own, member_only=True), folder)
    members = tuple(
        replace(part, card_name=f"{own.name}.json")
        for part, own in zip(card.members, own_cards, strict=True)
    )
    bag = replace(card, name=name, path=folder / f"{name}.json", members=members)
    _write(bag, folder)
    return bag


def _copy_network(card: ModelCard, folder: Path) -> ModelCard:
    from models.checkpoints import load_network  # noqa: PLC0415 - heavy: imports torch

    load_network(card)  # refuses what cannot be trusted
    written = replace(card, weights_path=folder / f"{card.name}.safetensors")
    unfinished = written.weights_path.with_name(f"{written.weights_path.name}.part")
    with _whole(folder, card.name):
        shutil.copyfile(card.weights_path, unfinished)
        unfinished.replace(written.weights_path)
    _write(written, folder)
    return written


def _refuse_taken(name: str, folder: Path, installed: list[Card]) -> None:
    if any(card.name == name for card in installed) or (folder / f"{name}.json").exists():
        raise _taken(name, folder)


def _taken(name: str, folder: Path) -> ModelError:
    return ModelError(
        f"{folder / name}.json: a model called {name} is there already; remove it, or give the"
        " new one another name by --name"
    )


def _not_removable(name: str, folder: Path) -> ModelError:
    for card in list_models():
        if card.name == name:
            return ModelError(
                f"{name} lies in {card.path.parent}, not in the user's own folder {folder}, and"
                " stays"
            )
    return UnknownModel(f"there is no model {name!r} in {folder}; see 'stembridge models list'")


def _cards(folder: Path) -> dict[Path, Card]:
    read = {path: _read_or_none(path) for path in sorted(folder.glob("[!.]*.json"))}
    return {path: card for path, card in read.items() if card is not None}


def _read_or_none(path: Path) -> Card | None:
    try:
        return read_card(path)
    except CheckpointError:
        return None


def _write(card: Card, folder: Path) -> None:
    with _whole(folder, card.name):
        write_card(card, folder / f"{card.name}.json")


def _take_back_if_unreadable(card: Card) -> None:
    """Remove a model whose card cannot be read: its file asked for what no card may say."""
    try:
        read_card(card.path)
    except CheckpointError:
        _delete([card.path] + ([card.weights_path] if isinstance(card, ModelCard) else []))
        raise


@contextmanager
def _whole(folder: Path, name: str) -> Iterator[None]:
    """Leave nothing unfinished behind when writing a model fails."""
    try:
        yield
    except BaseException:
        for suffix in (".json", ".safetensors"):
            with suppress(OSError):
                (folder / f"{name}{suffix}.part").unlink(missing_ok=True)
        raise


def _delete(paths: list[Path]) -> int:
    """Remove files in this order; those that are not there are passed over."""
    freed_bytes = 0
    for path in paths:
        try:
            stored_bytes = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        freed_bytes += stored_bytes
    return freed_bytes
