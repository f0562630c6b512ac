"""Bags of models as they were published: YAML files that name several networks and their weights.

Reading one needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.cards import MAX_MEMBERS, MAX_STEMS, MAX_WEIGHT, NAME_PATTERN
from models.errors import CheckpointError

__all__ = ["Bag", "read_bag"]

MAX_BAG_BYTES = 100_000
MAX_SEGMENT_SECONDS = 3600


@dataclass(frozen=True)
class Bag:
    """Several networks whose stems are averaged."""

    members: tuple[str, ...]  # signatures; one may be there twice
    weights: tuple[tuple[float, ...], ...] | None  # a row per member, a column per stem
    segment_seconds: float | None  # in place of the members' own


def read_bag(path: Path) -> Bag:
    """Read the YAML file of a bag.

    Raises
    ------
    CheckpointError
        The file cannot be read or is not a bag; one line, with the field that is wrong.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BAG_BYTES + 1)
        if len(content) > MAX_BAG_BYTES:
            raise CheckpointError(f"{path} is too large for a bag of models")
        values = yaml.safe_load(content)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    # safe_load makes plain values only; it fails in as many ways as values can be wrong.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        raise CheckpointError(f"{path} is not a bag of models: not YAML") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not a bag of models: nested too deep") from None

    if fault := next(_bag_faults(values), None):
        raise CheckpointError(f"{path} is not a usable bag of models: {fault}")
    rows, segment = values.get("weights"), values.get("segment")
    return Bag(
        tuple(values["models"]),
        None if rows is None else tuple(tuple(map(float, row)) for row in rows),
        None if segment is None else float(segment),
    )


def _bag_faults(values: Any) -> Iterator[str]:
    """Tell what is wrong with a bag, the first thing first."""
    if not isinstance(values, dict) or not values.keys() <= {"models", "weights", "segment"}:
        yield "it must consist of models, weights and segment"
    members = values.get("models")
    if not isinstance(members, list) or not 1 <= len(members) <= MAX_MEMBERS:
        yield f"models must be a list of 1 to {MAX_MEMBERS} signatures"
    if not all(isinstance(member, str) and NAME_PATTERN.fullmatch(member) for member in members):
        yield "models must be signatures: letters, digits, dots, dashes and underscores"
    segment = values.get("segment")
    if segment is not None and not (_is_number(segment) and 0 < segment <= MAX_SEGMENT_SECONDS):
        yield "segment must be a number of seconds above 0"
    rows = values.get("weights")
    if rows is not None:
        if not isinstance(rows, list) or len(rows) != len(members):
            yield "weights must have one row for each model"
        yield from _weights_faults(rows)


def _weights_faults(rows: list[Any]) -> Iterator[str]:
    if not all(isinstance(row, list) and 1 <= len(row) <= MAX_STEMS for row in rows):
        yield f"each row of weights must be a list of 1 to {MAX_STEMS} numbers"
    if len({len(row) for row in rows}) != 1:
        yield "the rows of weights differ in length"
    if not all(_is_number(weight) and 0 <= weight <= MAX_WEIGHT for row in rows for weight in row):
        yield f"weights must be numbers from 0 to {MAX_WEIGHT:.0e}"
    if not all(sum(column) > 0 for column in zip(*rows, strict=True)):
        yield "a column of weights adds up to 0: nothing would estimate that stem"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -math.inf < value < math.inf  # not isfinite, which huge whole numbers overflow
