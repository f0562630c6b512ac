"""Networks with their weights in them, one for a plain model and several for a bag."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.adopt import Adopted, adopt, effective_segment_frames
from models.cards import BagCard, Card, ModelCard, read_card
from models.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.official import OfficialCheckpoint

__all__ = [
    "Bundle",
    "Member",
    "card_of_official",
    "check_member",
    "load_card",
    "load_official",
    "member_cards",
]


@dataclass(frozen=True)
class Member:
    """One network of a loaded model, in evaluation mode on its device."""

    network: nn.Module
    segment_frames: int  # what it likes to be fed at a time
    weights: tuple[float, ...]  # what its estimate of each of the model's stems counts for

    @property
    def segments_at_once(self) -> int:
        """How many segments of equal length the network is best given in one batch."""
        return int(getattr(self.network, "segments_at_once", 1))

    def valid_frames(self, frames: int) -> int:
        """Return the least input length of at least ``frames`` that the network takes as it is.

        Raises
        ------
        ValueError
            The network cannot take as many frames at a time.
        """
        valid_length = getattr(self.network, "valid_length", None)
        return frames if valid_length is None else int(valid_length(frames))

    def separate_segment(self, mixture: Tensor, stems: Sequence[int] | None = None) -> Tensor:
        """Estimate stems of a segment.

        Parameters
        ----------
        mixture : Tensor
            (batch, channels, frames), float32, full scale 1.0, at the card's sample rate and
            channel count, on any device.
        stems : sequence of int, optional
            The wanted stems' places in the card's order; by default all.

        Returns
        -------
        Tensor
            (batch, wanted stems, channels, frames), float32, on the mixture's device.
        """
        import torch  # noqa: PLC0415 - heavy, and not needed to list models

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            moved = mixture.to(device)
            if stems is None:
                estimate: Tensor = self.network(moved)
            elif "stems" in inspect.signature(self.network.forward).parameters:
                estimate = self.network(moved, stems=list(stems))
            else:  # a network whose stems come out together anyway
                estimate = self.network(moved)[:, list(stems)]
            return estimate.to(mixture.device)


@dataclass(frozen=True)
class Bundle:
    """A loaded model: its card, and those of its networks that the wanted stems need.

    A stem is the members' average by their weights for it; a single model is one member, with
    the weight 1 for every stem.
    """

    card: Card
    members: tuple[Member, ...]


def member_cards(bag: BagCard) -> list[ModelCard]:
    """Read the cards of a bag's members, in the bag's order.

    Raises
    ------
    CheckpointError
        A card is missing or wrong, is a bag itself, or contradicts the bag.
    """
    cards = []
    for member in bag.members:
        card = read_card(bag.path.parent / member.card_name)
        if not isinstance(card, ModelCard):
            raise CheckpointError(
                f"{bag.path} names {member.card_name}, which is a bag itself; a bag is made of"
                " networks"
            )
        check_member(bag, card, bag.path)
        cards.append(card)
    return cards


def load_card(card: Card, device: str, stems: Sequence[str] | None) -> Bundle:
    """Load a card's networks, or of a bag those that the wanted stems need, onto a device.

    Raises
    ------
    CheckpointError
        Weights or a member's card cannot be trusted.
    ModelError
        The device cannot be used, or the model has no such stem.
    """
    wanted = _wanted(card, stems)
    members = [_on_device(member, device) for member in _members(card, wanted)]
    return Bundle(card, tuple(members))


def _members(card: Card, wanted: Sequence[int]) -> Iterator[Member]:
    from models.checkpoints import load_network  # noqa: PLC0415 - heavy: imports torch

    if isinstance(card, ModelCard):
        yield Member(load_network(card), card.segment_frames, _ones(card))
        return
    for part, own in zip(card.members, member_cards(card), strict=True):
        if any(part.weights[index] > 0 for index in wanted):
            segment_frames = effective_segment_frames(
                own.architecture, own.segment_frames, card.segment_frames
            )
            yield Member(load_network(own), segment_frames, part.weights)


def load_official(path: Path, device: str, stems: Sequence[str] | None) -> Bundle:
    """Load a public checkpoint or bag as it lies on disk, one file at a time.

    Raises
    ------
    As :func:`load_card`.
    """
    from models.checkpoints import network_from_state  # noqa: PLC0415 - heavy: imports torch

    adopted = adopt(path)
    first = adopted.members[0].read()
    card = _card_of(adopted, first, path)
    wanted = _wanted(card, stems)
    members = []
    for index, part in enumerate(adopted.members):
        weights = card.members[index].weights if isinstance(card, BagCard) else _ones(card)
        if not any(weights[stem] > 0 for stem in wanted):
            continue
        checkpoint = part.read() if index else first
        own = adopted.member_card(part, checkpoint)
        override = None
        if isinstance(card, BagCard):
            check_member(card, own, path)
            override = card.segment_frames
        segment_frames = effective_segment_frames(own.architecture, own.segment_frames, override)
        network = network_from_state(checkpoint.config, checkpoint.state)
        member = Member(network, segment_frames, weights)
        members.append(_on_device(member, device))
    return Bundle(card, tuple(members))


def card_of_official(path: Path) -> Card:
    """Describe a public checkpoint or bag; ``CheckpointError`` if it cannot be trusted."""
    adopted = adopt(path)
    return _card_of(adopted, adopted.members[0].read(), path)


def _card_of(adopted: Adopted, first: OfficialCheckpoint, path: Path) -> Card:
    card = adopted.member_card(adopted.members[0], first)
    return adopted.bag_card(card, path.parent) if adopted.is_bag else card


def _wanted(card: Card, stems: Sequence[str] | None) -> tuple[int, ...]:
    """Find the wanted stems' places in the card's order."""
    if stems is None:
        return tuple(range(len(card.stems)))
    if unknown := [stem for stem in stems if stem not in card.stems]:
        raise ModelError(
            f"model {card.name!r} has no stem {unknown[0]!r}; it has: {', '.join(card.stems)}"
        )
    if not stems:
        raise ValueError("no stem is wanted")
    return tuple(card.stems.index(stem) for stem in stems)


def _ones(card: Card) -> tuple[float, ...]:
    return (1.0,) * len(card.stems)


def check_member(bag: BagCard, card: ModelCard, path: Path) -> None:
    """Raise ``CheckpointError`` if a network differs from its bag in what must be equal."""
    told = (bag.stems, bag.sample_rate_hz, bag.audio_channels)
    if told != (card.stems, card.sample_rate_hz, card.audio_channels):
        raise CheckpointError(
            f"{path} is not a usable bag: its member {card.name} differs from it in stems,"
            " sample rate or channels"
        )


def _on_device(member: Member, device: str) -> Member:
    try:
        # Accelerators are given whole weights: only processors widen them layer by layer.
        member.network.to(device)
        if device != "cpu":
            member.network.float()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the device {device!r} cannot be used: {reason}; try cpu") from None
    return member
