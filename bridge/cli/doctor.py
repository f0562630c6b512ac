"""``stembridge doctor``: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from bridge.cli.console import print_json, print_line, print_table
from bridge.errors import BridgeError
from models.errors import ModelError
from models.registry import DEFAULT_MODEL, find, list_models

_NEEDED = ("torch", "numpy", "soundfile", "soxr", "safetensors", "pedalboard", "python-osc")
_OPTIONAL = {"matplotlib": "pip install 'stembridge[demo]' (pictures)"}

# Command names, most recent first; REAPER and others also lie where no PATH leads.
_DAWS = {
    "Ardour": ("ardour9", "ardour8", "ardour7", "ardour"),
    "REAPER": ("reaper", "/Applications/REAPER.app", r"C:\Program Files\REAPER (x64)\reaper.exe"),
    "Bitwig Studio": ("bitwig-studio", "/Applications/Bitwig Studio.app"),
    "Audacity": ("audacity", "/Applications/Audacity.app"),
}
# Programs that can run plugins; pedalboard, the one that Stembridge needs, is a package.
_HOSTS = {"Carla": ("carla",), "jalv": ("jalv",)}
_HOW_TO_GET = {"Ardour": "apt-get install ardour, or https://ardour.org"}
_USABLE = {"Ardour": "sessions can be rendered into"}


class Finding(NamedTuple):
    """One line of the report; ``state`` is ok, missing (something fails), or absent (optional)."""

    name: str
    state: str
    detail: str


class _Failed(BridgeError):
    """Something needed is missing."""


def run(options: Namespace) -> None:
    """Run the command."""
    findings = list(_findings())
    if options.json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        print_table(("what", "state", "detail"), findings)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if missing:
        raise _Failed(f"missing: {', '.join(missing)}; see the table for how to get them")
    if not options.json:
        print_line("Everything that separating and rendering need is there.")


def _findings() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    for package in _NEEDED:
        yield _package(package, "missing", "pip install stembridge")
    for package, remedy in _OPTIONAL.items():
        yield _package(package, "absent", remedy)
    yield _device()
    yield _model()
    for name, commands in (_DAWS | _HOSTS).items():
        yield _daw(name, commands)
    free_gigabytes = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding("disk", "ok", f"{free_gigabytes:.1f} GB free here")


def _package(name: str, otherwise: str, remedy: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, otherwise, remedy)


def _device() -> Finding:
    try:
        import torch  # noqa: PLC0415

        from bridge.separator.network import best_device  # noqa: PLC0415
    except ImportError as error:
        return Finding("device", "missing", f"torch cannot be loaded ({error})")
    device = best_device()
    detail = f"cpu, {torch.get_num_threads()} threads"
    if device == "cuda":
        detail = f"cuda, {torch.cuda.get_device_name()}"
    return Finding("device", "ok", device if device == "mps" else detail)


def _model() -> Finding:
    try:
        card = find(DEFAULT_MODEL)
    except ModelError as error:
        return Finding("model", "missing", str(error))
    others = len(list_models()) - 1
    return Finding("model", "ok", card.name + (f" and {others} more" if others else ""))


def _daw(name: str, commands: tuple[str, ...]) -> Finding:
    for command in commands:
        found = shutil.which(command) or (command if Path(command).exists() else None)
        if found is None:
            continue
        detail = " ".join(filter(None, (_version(name, found), f"at {found}")))
        return Finding(name, "ok", f"{detail}; {_USABLE.get(name, 'not used by this version')}")
    return Finding(name, "absent", _HOW_TO_GET.get(name, "not found; not needed"))


def _version(name: str, command: str) -> str:
    if name != "Ardour":
        return ""
    try:
        answer = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((word for word in answer.stdout.split() if word[0].isdigit()), "")
