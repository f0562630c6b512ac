"""How fast the models ran on this machine, in a small file in the user's folder of models."""

from __future__ import annotations

import datetime
import json
import math
from contextlib import suppress
from typing import Any

from models.registry import users_folder

__all__ = ["record_speed", "speeds"]

SPEEDS_NAME = ".speeds.json"  # no model's name starts with a dot
MAX_SPEEDS_BYTES = 1_000_000


def record_speed(model: str, real_time_factor: float, device: str) -> None:
    """Note how fast a model ran here; a folder that cannot be written is no reason to fail.

    Parameters
    ----------
    model : str
        The model's name.
    real_time_factor : float
        Seconds of work per second of audio.
    device : str
        What it ran on.
    """
    if not (math.isfinite(real_time_factor) and real_time_factor > 0):
        return
    known = speeds()
    known[model] = {
        "real_time_factor": round(real_time_factor, 4),
        "device": device,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    path = users_folder() / SPEEDS_NAME
    unfinished = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def speeds() -> dict[str, dict[str, Any]]:
    """Return what was measured: model → ``real_time_factor``, ``device``, ``date``.

    What is missing or damaged is left out.
    """
    path = users_folder() / SPEEDS_NAME
    try:
        if path.stat().st_size > MAX_SPEEDS_BYTES:
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        model: {key: entry[key] for key in ("real_time_factor", "device", "date")}
        for model, entry in values.items()
        if isinstance(entry, dict) and _is_speed(entry)
    }


def _is_speed(entry: dict[str, Any]) -> bool:
    factor = entry.get("real_time_factor")
    return (
        isinstance(factor, float | int)
        and not isinstance(factor, bool)
        and 0 < factor < math.inf
        and all(isinstance(entry.get(key), str) for key in ("device", "date"))
    )
