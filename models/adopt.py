"""Other people's files as models of ours: a public checkpoint, or a bag of them, gets a card.

The files are read by :mod:`models.official`, one at a time; nothing is written here.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models import catalogue
from models.cards import BagCard, BagMember, ModelCard, weights_fault
from models.catalogue import OfficialModel
from models.errors import CheckpointError

if TYPE_CHECKING:
    from models.official import OfficialCheckpoint

__all__ = ["Adopted", "AdoptedMember", "adopt", "adopt_known", "is_official", "merge_equal"]

BAG_SUFFIXES = (".yaml", ".yml")
OFFICIAL_SUFFIXES = (".th", ".pt", ".safetensors", *BAG_SUFFIXES)
UNKNOWN_LICENCE = "LicenseRef-unknown"
_PUBLISHED = re.compile(r"(?P<signature>.+)-(?P<sha256>[0-9a-f]{8})")


@dataclass(frozen=True)
class AdoptedMember:
    """One file and its part."""

    path: Path
    name: str  # for its card
    weights: tuple[float, ...] | None  # one per stem; None: all members count the same
    times: int = 1  # how often its bag names it

    def read(self) -> OfficialCheckpoint:
        """Read the file; ``CheckpointError`` if it cannot be trusted, or its name is untrue."""
        from models.official import read_official  # noqa: PLC0415 - heavy: imports torch

        return read_official(self.path)


@dataclass(frozen=True)
class Adopted:
    """What a file of others amounts to, before weights are read."""

    path: Path
    name: str
    members: tuple[AdoptedMember, ...]
    segment_seconds: float | None  # in place of the networks' own

    @property
    def is_bag(self) -> bool:
        """Whether several networks separate together."""
        return len(self.members) > 1

    def member_card(self, member: AdoptedMember, checkpoint: OfficialCheckpoint) -> ModelCard:
        """Describe one network; for a bag of one, the whole model."""
        config = checkpoint.config
        known = catalogue.file_of(checkpoint.sha256)
        model = None if known is None else catalogue.model_of_file(known)
        segment_frames = config.segment_frames
        if not self.is_bag:
            override = self.bag_segment_frames(config.sample_rate_hz)
            segment_frames = effective_segment_frames(
                checkpoint.architecture, segment_frames, override
            )
        half = all(
            str(tensor.dtype) == "torch.float16"
            for tensor in checkpoint.state.values()
            if tensor.is_floating_point()
        )
        return ModelCard(
            name=member.name if self.is_bag else self.name,
            architecture=checkpoint.architecture,
            config=config.to_dict(),
            stems=config.sources,
            sample_rate_hz=config.sample_rate_hz,
            audio_channels=config.audio_channels,
            segment_frames=segment_frames,
            weights_path=member.path,
            weights_sha256=checkpoint.sha256,
            weights_dtype="float16" if half else "float32",
            licence=UNKNOWN_LICENCE if model is None else model.licence,
            description=_description(model, member.path),
            data=_data(model),
            training={"file": member.path.name, "file_sha256": checkpoint.sha256},
            member_only=self.is_bag,
        )

    def bag_card(self, first: ModelCard, folder: Path) -> BagCard:
        """Describe the bag, whose members are like the first of them.

        Raises
        ------
        CheckpointError
            The weights do not fit the stems.
        """
        rows = [
            member.weights or (float(member.times),) * len(first.stems) for member in self.members
        ]
        if fault := weights_fault(rows, first.stems):
            raise CheckpointError(f"{self.path} is not a usable bag: {fault}")
        model = _known(*(member.path for member in self.members))
        return BagCard(
            name=self.name,
            path=folder / f"{self.name}.json",
            members=tuple(
                BagMember(f"{member.name}.json", row)
                for member, row in zip(self.members, rows, strict=True)
            ),
            stems=first.stems,
            sample_rate_hz=first.sample_rate_hz,
            audio_channels=first.audio_channels,
            segment_frames=self.bag_segment_frames(first.sample_rate_hz),
            licence=first.licence,
            description=_description(model, self.path),
            data=_data(model),
            training={"files": [member.path.name for member in self.members]},
        )

    def bag_segment_frames(self, sample_rate_hz: int) -> int | None:
        """Return what a bag feeds its members; None: each its own."""
        return None if self.segment_seconds is None else int(self.segment_seconds * sample_rate_hz)


def effective_segment_frames(architecture: str, own: int, override: int | None) -> int:
    """Decide between a network's own segment and its bag's.

    The transformer knows positions up to the length it was trained on, so a bag can only shorten
    its segment.
    """
    if override is None or (architecture == "htdemucs" and override > own):
        return own
    return override


def is_official(path: Path) -> bool:
    """Whether a file's name is one of the public checkpoints' and bags' kinds."""
    return path.suffix.lower() in OFFICIAL_SUFFIXES


def adopt(path: Path, name: str | None = None) -> Adopted:
    """Find out what a file, or a bag's file, is made of; a bag's members lie beside it.

    Parameters
    ----------
    path : Path
        A ``.th`` or ``.safetensors`` file, or a bag's ``.yaml``.
    name : str, optional
        What to call it; by default what the catalogue calls it, or the file's own name.

    Raises
    ------
    CheckpointError
        The bag cannot be read, or a member is not there. Files themselves are not yet read.
    """
    if path.suffix.lower() not in BAG_SUFFIXES:
        told = _PUBLISHED.fullmatch(path.stem)
        signature = told["signature"] if told else path.stem
        model = _known(path)
        member = AdoptedMember(path, _plain_name(signature), None)
        if model is None:
            return Adopted(path, name or member.name, (member,), None)
        return Adopted(path, name or model.name, (member,), model.segment_seconds)
    from models.official import read_bag  # noqa: PLC0415 - heavy: imports torch

    bag = read_bag(path)
    rows = bag.weights if bag.weights is not None else [None] * len(bag.members)
    members = [
        AdoptedMember(
            _member_path(path, signature),
            _plain_name(signature),
            None if row is None else tuple(float(weight) for weight in row),
        )
        for signature, row in zip(bag.members, rows, strict=True)
    ]
    return Adopted(path, name or _plain_name(path.stem), merge_equal(members), bag.segment_seconds)


def adopt_known(model: OfficialModel, folder: Path) -> Adopted:
    """Take a public model whose files lie, under their published names, in a folder."""
    rows: Sequence[tuple[float, ...] | None] = model.weights or (None,) * len(model.files)
    members = [
        AdoptedMember(folder / file.name, file.signature, row)
        for file, row in zip(model.files, rows, strict=True)
    ]
    return Adopted(folder, model.name, merge_equal(members), model.segment_seconds)


def merge_equal(members: Sequence[AdoptedMember]) -> tuple[AdoptedMember, ...]:
    """Let a network that a bag names several times run once, with its weights added up."""
    merged: dict[Path, AdoptedMember] = {}
    for member in members:
        before = merged.get(member.path)
        if before is None:
            merged[member.path] = member
        elif before.weights is None or member.weights is None:
            merged[member.path] = replace(before, times=before.times + 1)
        else:
            pairs = zip(before.weights, member.weights, strict=True)
            merged[member.path] = replace(before, weights=tuple(a + b for a, b in pairs))
    return tuple(merged.values())


def _known(*paths: Path) -> OfficialModel | None:
    """Find the public model that files make up, by the files' names."""
    names = {path.name for path in paths}
    for model in catalogue.OFFICIAL_MODELS.values():
        if {file.name for file in model.files} == names:
            return model
    return None


def _member_path(bag_path: Path, signature: str) -> Path:
    """Find a member's file beside its bag: as published, as saved, or as the hub has it."""
    if Path(signature).name != signature or not signature.isprintable():
        raise CheckpointError(f"{bag_path} is not a usable bag: {signature[:60]!r} is no file name")
    folder = bag_path.parent
    published = [
        path
        for path in sorted(folder.glob(f"{glob.escape(signature)}-*.th"))
        if _PUBLISHED.fullmatch(path.stem)
    ]
    others = [folder / f"{signature}{suffix}" for suffix in (".th", ".safetensors")]
    found = published or [path for path in others if path.is_file()]
    if len(found) != 1:
        what = f"has {len(found)} files" if found else "lacks the file"
        raise CheckpointError(
            f"{bag_path} {what} of its member {signature} beside it: put one"
            f" {signature}-SHA8.th there"
        )
    return found[0]


def _plain_name(text: str) -> str:
    """Make a name for a card out of a file's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
    return name or "model"


def _description(model: OfficialModel | None, path: Path) -> str:
    return f"from {path.name}" if model is None else model.description


def _data(model: OfficialModel | None) -> list[dict[str, str]]:
    return [] if model is None else [{"name": model.trained_on, "link": model.link}]
