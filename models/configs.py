"""What the networks' configs have in common: how they are written, read and checked.

A config is a frozen dataclass of plain numbers, switches, names and tuples of those. It comes out
of files that anybody may have written, so its class checks it: types first
(:func:`check_types`), then what the network can be built from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from fractions import Fraction
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_ranges", "check_sources", "check_types", "from_dict", "from_reference", "to_dict"]

Config = TypeVar("Config", bound="DataclassInstance")

MAX_SOURCES = 64
MAX_NUMBER = 1e12


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Give a config as JSON knows it; :func:`from_dict` reads it back."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def from_dict(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from :func:`to_dict`'s result.

    Raises
    ------
    ValueError
        A value is unknown or impossible, or ``sources`` is missing; one line.
    """
    if "sources" not in values:
        raise ValueError(f"not a {config_class.__name__}: sources are missing")
    try:
        return config_class(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )
    except TypeError as error:
        raise ValueError(f"not a {config_class.__name__}: {error}") from None


def from_reference(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from the constructor arguments that a public checkpoint carries.

    Fields have the names of those arguments, except that ``samplerate`` (Hz) is
    ``sample_rate_hz``, and ``segment`` (seconds, whole, broken or a fraction) becomes
    ``segment_frames``. Arguments that are no fields, because only training reads them or because
    no version knows them, are left out, as the reference does.

    Raises
    ------
    ValueError
        A value is impossible, or ``sources`` is missing; one line.
    """
    hints = get_type_hints(config_class)
    known = {
        name: _converted(value, hints[name])
        for name, value in values.items()
        if name in {field.name for field in fields(config_class)}
    }
    if "samplerate" in values:
        known["sample_rate_hz"] = values["samplerate"]
    if "segment" in values:
        sample_rate_hz = known.get("sample_rate_hz", 44100)
        known["segment_frames"] = _segment_frames(values["segment"], sample_rate_hz)
    return from_dict(config_class, known)


def check_types(config: DataclassInstance) -> None:
    """Raise ``ValueError`` if a field's value is not of the field's type, or is not finite."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise ValueError(f"{name} cannot be {str(value)[:60]!r}")


def check_sources(sources: Sequence[str]) -> None:
    """Raise ``ValueError`` unless these are distinct names, at least one."""
    if not sources or len(set(sources)) != len(sources) or not all(sources):
        raise ValueError(f"sources must be distinct names, not {str(sources)[:60]}")
    if len(sources) > MAX_SOURCES:
        raise ValueError(f"{len(sources)} sources are too many; the limit is {MAX_SOURCES}")


def check_ranges(config: DataclassInstance, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise ``ValueError`` if a field is outside of its range; both ends belong to it."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low:g} to {high:g}, not {value!r}")


def _converted(value: Any, hint: Any) -> Any:
    """Turn what a Python call may have been given into what a field holds."""
    if get_origin(hint) is tuple:
        return tuple(value) if isinstance(value, list | tuple) else value or ()
    if hint is bool and value in (0, 1):
        return bool(value)
    return value


def _segment_frames(segment: Any, sample_rate_hz: Any) -> int:
    """Count the frames of a segment in seconds, rounded down."""
    if not _fits(sample_rate_hz, int) or not isinstance(segment, int | float | Fraction):
        raise ValueError(f"segment cannot be {str(segment)[:60]!r} seconds")
    if not 0 < segment < MAX_NUMBER:
        raise ValueError("segment must be some seconds")
    return int(sample_rate_hz * segment)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type that fields have."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        number = isinstance(value, int | float if hint is float else int)
        return number and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
    return isinstance(value, NoneType if hint is None else hint)
