"""Model cards: the JSON file beside a model's weights, which says what they are.

A card describes one network (:class:`ModelCard`) or a bag of several whose stems are averaged
(:class:`BagCard`); the bag's members are cards in the same folder. A card is data and is read as
such: every field is checked, nothing in it names code. Reading one needs no torch, so listing
models is quick.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from models.errors import CheckpointError

__all__ = [
    "BAG_FORMAT",
    "CARD_FORMAT",
    "NAME_PATTERN",
    "BagCard",
    "BagMember",
    "Card",
    "ModelCard",
    "read_card",
    "weights_fault",
    "write_card",
]

CARD_FORMAT = 1
BAG_FORMAT = 2
MAX_CARD_BYTES = 1_000_000
MAX_STEMS = 32
MAX_MEMBERS = 32
MAX_WEIGHT = 1_000_000.0
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model before its weights are read."""

    name: str
    architecture: str  # "demucs"
    config: dict[str, Any]  # of the architecture
    stems: tuple[str, ...]  # in the order of the network's output
    sample_rate_hz: int
    audio_channels: int
    segment_frames: int  # what the network likes to be fed at a time
    weights_path: Path
    weights_sha256: str
    weights_dtype: str  # "float16" or "float32", as stored; networks always compute in float32
    licence: str  # of the weights, an SPDX expression
    description: str
    data: list[dict[str, Any]] = field(default_factory=list)  # what it learned from, with licences
    training: dict[str, Any] = field(default_factory=dict)  # steps, hours, machine, loss
    scores: dict[str, Any] = field(default_factory=dict)  # split → method → stem → dB
    not_good_for: tuple[str, ...] = ()
    member_only: bool = False  # serves a bag in its folder and is not listed itself

    @property
    def path(self) -> Path:
        """Where the card lies: beside the weights, under their name."""
        return self.weights_path.with_suffix(".json")


@dataclass(frozen=True)
class BagMember:
    """One network's part in a bag."""

    card_name: str  # file name of its card, in the bag's folder
    weights: tuple[float, ...]  # what its estimate of each stem counts for, not negative


@dataclass(frozen=True)
class BagCard:
    """What is known of several networks that separate together.

    Each stem is the members' average, by their weights for that stem.
    """

    name: str
    path: Path
    members: tuple[BagMember, ...]
    stems: tuple[str, ...]
    sample_rate_hz: int
    audio_channels: int
    segment_frames: int | None  # in place of the members' own; None: each its own
    licence: str
    description: str
    data: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    not_good_for: tuple[str, ...] = ()


Card: TypeAlias = ModelCard | BagCard


def read_card(path: Path) -> Card:
    """Read and check a card; a bag's members are not read.

    Raises
    ------
    CheckpointError
        The file is missing, not a card, of another format, or a field is wrong. One line, with
        the file and the field.
    """
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise CheckpointError(f"{path} is too large for a model card")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the model card {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a model card: not JSON ({error})") from None
    if not isinstance(values, dict) or not {"weights", "members"} & values.keys():
        raise CheckpointError(f"{path} is not a model card: it names no weights")
    stored_format = values.get("format")
    if stored_format not in (CARD_FORMAT, BAG_FORMAT) or isinstance(stored_format, bool):
        raise CheckpointError(
            f"{path} is a card of format {stored_format!r}, and only {CARD_FORMAT} and {BAG_FORMAT}"
            " are known; a newer stembridge may read it"
        )
    reader = _CardReader(path, values)
    return reader.read_model() if stored_format == CARD_FORMAT else reader.read_bag()


def write_card(card: Card, path: Path) -> None:
    """Write a card; its weights, or its members' cards, lie in the same folder."""
    parts = _model_values(card) if isinstance(card, ModelCard) else _bag_values(card)
    values = {
        "format": CARD_FORMAT if isinstance(card, ModelCard) else BAG_FORMAT,
        "name": card.name,
        "description": card.description,
        "licence": card.licence,
        **parts,
        "data": card.data,
        "training": card.training,
        "scores": card.scores,
        "not_good_for": list(card.not_good_for),
    }
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _model_values(card: ModelCard) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architecture": card.architecture,
        "config": card.config,
        "stems": list(card.stems),
        "sample_rate_hz": card.sample_rate_hz,
        "audio_channels": card.audio_channels,
        "segment_frames": card.segment_frames,
        "weights": {
            "file": card.weights_path.name,
            "sha256": card.weights_sha256,
            "dtype": card.weights_dtype,
        },
    }
    return values | ({"member_only": True} if card.member_only else {})


def _bag_values(card: BagCard) -> dict[str, Any]:
    return {
        "stems": list(card.stems),
        "sample_rate_hz": card.sample_rate_hz,
        "audio_channels": card.audio_channels,
        "segment_frames": card.segment_frames,
        "members": [
            {"card": member.card_name, "weights": list(member.weights)} for member in card.members
        ],
    }


class _CardReader:
    """Takes fields out of one card's JSON, each with its check."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def read_model(self) -> ModelCard:
        values = self.values
        weights = self._take(values, "weights", dict)
        weights_name = self._file_name(weights, "file", "weights.file", ".safetensors")
        sha256 = self._take(weights, "sha256", str)
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            self._fail("weights.sha256", "must be 64 lower-case hexadecimal digits")
        dtype = self._take(weights, "dtype", str)
        if dtype not in ("float16", "float32"):
            self._fail("weights.dtype", "must be float16 or float32")
        return ModelCard(
            architecture=self._take(values, "architecture", str),
            config=self._take(values, "config", dict),
            segment_frames=self._segment_frames(),
            weights_path=self.path.parent / weights_name,
            weights_sha256=sha256,
            weights_dtype=dtype,
            member_only=self._take(values, "member_only", bool, False),
            **self._common(),
        )

    def read_bag(self) -> BagCard:
        common = self._common()
        members = self._take(self.values, "members", list)
        if not 1 <= len(members) <= MAX_MEMBERS:
            self._fail("members", f"must be 1 to {MAX_MEMBERS}")
        bag = BagCard(
            path=self.path,
            members=tuple(self._member(member, len(common["stems"])) for member in members),
            segment_frames=(
                None if self.values.get("segment_frames") is None else self._segment_frames()
            ),
            **common,
        )
        if fault := weights_fault([member.weights for member in bag.members], bag.stems):
            self._fail("members", fault)
        return bag

    def _member(self, values: Any, stems: int) -> BagMember:
        if not isinstance(values, dict):
            self._fail("members", "must be a list of dicts")
        card_name = self._file_name(values, "card", "members.card", ".json")
        if card_name == self.path.name:
            self._fail("members.card", "names the bag itself")
        weights = self._take(values, "weights", list)
        if fault := _row_fault(weights, stems):
            self._fail("members.weights", fault)
        return BagMember(card_name, tuple(map(float, weights)))

    def _common(self) -> dict[str, Any]:
        """Read the fields that networks and bags share."""
        values = self.values
        name = self._take(values, "name", str)
        if not NAME_PATTERN.fullmatch(name):
            self._fail("name", "must be made of letters, digits, dots, dashes and underscores")
        stems = self._names(values, "stems")
        # Stems become file names and track names.
        if not 1 <= len(stems) <= MAX_STEMS or len(set(stems)) != len(stems):
            self._fail("stems", f"must be 1 to {MAX_STEMS} distinct names")
        if not all(NAME_PATTERN.fullmatch(stem) for stem in stems):
            self._fail("stems", "must be made of letters, digits, dots, dashes and underscores")
        scores = self._take(values, "scores", dict, {})
        if not _all_finite(scores):
            self._fail("scores", "must hold finite numbers")
        return {
            "name": name,
            "stems": stems,
            "sample_rate_hz": self._whole(values, "sample_rate_hz", 8_000, 384_000),
            "audio_channels": self._whole(values, "audio_channels", 1, 64),
            "licence": self._take(values, "licence", str),
            "description": self._take(values, "description", str, ""),
            "data": self._take(values, "data", list, []),
            "training": self._take(values, "training", dict, {}),
            "scores": scores,
            "not_good_for": self._names(values, "not_good_for", []),
        }

    def _segment_frames(self) -> int:
        return self._whole(self.values, "segment_frames", 1_000, 100_000_000)

    def _file_name(self, values: dict[str, Any], key: str, told: str, suffix: str) -> str:
        name: str = self._take(values, key, str)
        # Only a plain file name: a card must not reach for files elsewhere.
        plain = Path(name).name == name and "\\" not in name and name.isprintable()
        if not plain or not name.endswith(suffix):
            self._fail(told, f"must name a {suffix} file in the card's own folder")
        return name

    def _take(self, values: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
        value = values.get(key, default)
        if not isinstance(value, kind):
            self._fail(key, "is missing" if value is None else f"must be a {kind.__name__}")
        return value

    def _whole(self, values: dict[str, Any], key: str, low: int, high: int) -> int:
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._fail(key, f"must be a whole number from {low} to {high}")
        return value

    def _names(
        self, values: dict[str, Any], key: str, default: list[str] | None = None
    ) -> tuple[str, ...]:
        names = self._take(values, key, list, default)
        if not all(isinstance(name, str) for name in names):
            self._fail(key, "must be a list of texts")
        return tuple(names)

    def _fail(self, key: str, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is not a usable model card: {key} {what}")


def weights_fault(rows: Sequence[Sequence[float]], stems: Sequence[str]) -> str | None:
    """Say what is wrong with a bag's weights, a row per member; None if nothing is."""
    for row in rows:
        if fault := _row_fault(row, len(stems)):
            return fault
    for index, stem in enumerate(stems):
        if not sum(row[index] for row in rows) > 0:
            return f"give the stem {stem} no weight"
    return None


def _row_fault(row: Sequence[Any], stems: int) -> str | None:
    # Compared, not converted: JSON knows whole numbers that no float can hold.
    usable = all(type(weight) in (int, float) and 0 <= weight <= MAX_WEIGHT for weight in row)
    if usable and len(row) == stems:
        return None
    return f"must have one weight for each of {stems} stems, finite and 0 or more"


def _all_finite(values: Any) -> bool:
    """Whether every number in a nest of dicts and lists is finite (JSON readers accept NaN)."""
    if isinstance(values, dict):
        return all(_all_finite(value) for value in values.values())
    if isinstance(values, list):
        return all(_all_finite(value) for value in values)
    return not isinstance(values, float) or math.isfinite(values)
