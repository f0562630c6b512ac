"""Model cards: the JSON file beside a model's weights, which says what they are.

A card is data and is read as such: every field is checked, nothing in it names code. Reading one
needs no torch, so listing models is quick.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from models.errors import CheckpointError

__all__ = ["CARD_FORMAT", "ModelCard", "read_card", "write_card"]

CARD_FORMAT = 1
MAX_CARD_BYTES = 1_000_000
MAX_STEMS = 32
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


def read_card(path: Path) -> ModelCard:
    """Read and check a card.

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
    if not isinstance(values, dict) or "weights" not in values:
        raise CheckpointError(f"{path} is not a model card: it names no weights")
    if values.get("format") != CARD_FORMAT:
        raise CheckpointError(
            f"{path} is a card of format {values.get('format')!r}, and only {CARD_FORMAT} is known;"
            " a newer stembridge may read it"
        )
    return _CardReader(path).read(values)


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card; its weights lie in the same folder."""
    values = {
        "format": CARD_FORMAT,
        "name": card.name,
        "description": card.description,
        "licence": card.licence,
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
        "data": card.data,
        "training": card.training,
        "scores": card.scores,
        "not_good_for": list(card.not_good_for),
    }
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


class _CardReader:
    """Takes fields out of one card's JSON, each with its check."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, values: dict[str, Any]) -> ModelCard:
        weights = self._take(values, "weights", dict)
        weights_name = self._take(weights, "file", str)
        # Only a plain file name: a card must not reach for files elsewhere.
        if Path(weights_name).name != weights_name or not weights_name.endswith(".safetensors"):
            self._fail("weights.file", "must name a .safetensors file in the card's own folder")
        sha256 = self._take(weights, "sha256", str)
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            self._fail("weights.sha256", "must be 64 lower-case hexadecimal digits")
        dtype = self._take(weights, "dtype", str)
        if dtype not in ("float16", "float32"):
            self._fail("weights.dtype", "must be float16 or float32")
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
        return ModelCard(
            name=name,
            architecture=self._take(values, "architecture", str),
            config=self._take(values, "config", dict),
            stems=stems,
            sample_rate_hz=self._whole(values, "sample_rate_hz", 8_000, 384_000),
            audio_channels=self._whole(values, "audio_channels", 1, 64),
            segment_frames=self._whole(values, "segment_frames", 1_000, 100_000_000),
            weights_path=self.path.parent / weights_name,
            weights_sha256=sha256,
            weights_dtype=dtype,
            licence=self._take(values, "licence", str),
            description=self._take(values, "description", str, ""),
            data=self._take(values, "data", list, []),
            training=self._take(values, "training", dict, {}),
            scores=scores,
            not_good_for=self._names(values, "not_good_for", []),
        )

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


def _all_finite(values: Any) -> bool:
    """Whether every number in a nest of dicts and lists is finite (JSON readers accept NaN)."""
    if isinstance(values, dict):
        return all(_all_finite(value) for value in values.values())
    if isinstance(values, list):
        return all(_all_finite(value) for value in values)
    return not isinstance(values, float) or math.isfinite(values)
