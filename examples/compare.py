"""Speed, memory and output against the public Demucs package: ``make bench``.

Both get the same clip and the same checkpoint files, written here as the public ones are, with
random weights that make every branch of a network matter. They run in turns, each as its own
command in a fresh process, and what is printed are ratios within one round, for the machines that
this runs on are not quiet. ``python examples/compare.py --help`` tells the options.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from bridge.cli.console import print_json, print_line, print_table

SAMPLE_RATE_HZ = 44100
STEMS = ["drums", "bass", "other", "vocals"]
HTDEMUCS = {
    "bottom_channels": 512,
    "dconv_mode": 3,
    "segment": Fraction(39, 5),
}
VERSION_2 = {
    "lstm_layers": 2,
    "gelu": False,
    "norm_starts": 999,
    "dconv_mode": 0,
    "normalize": False,
    "segment": 10,
}


# A process counts as its own the memory of the one that started it: so a small one starts it.
_WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
wall, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stderr.buffer.write(done.stderr)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(done.returncode)
"""


@dataclass(frozen=True)
class Subject:
    """A public model's shape, and what is asked of it."""

    klass: str
    arguments: dict[str, Any]
    members: int = 1
    segment: int | None = None  # seconds, in the bag's file
    stem: str | None = None  # the one that is wanted


SUBJECTS = {
    "htdemucs": Subject("htdemucs.HTDemucs", HTDEMUCS),
    "hdemucs": Subject("hdemucs.HDemucs", {}, segment=44),
    "hdemucs 7.8 s": Subject("hdemucs.HDemucs", {"segment": Fraction(39, 5)}),
    "demucs v2": Subject("demucs.Demucs", VERSION_2),
    "demucs v3": Subject("demucs.Demucs", {}, segment=44),
    "htdemucs_ft, one stem": Subject("htdemucs.HTDemucs", HTDEMUCS, members=4, stem="vocals"),
}


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> None:
    """Compare, and print a table of ratios: ours to theirs."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = _write_clip(folder / "clip.wav", options.seconds)
        for model in options.models:
            rows.append(compare(model, folder, clip, options))
            print_line(json.dumps(rows[-1]))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_cpu_capability()}",
        "torch": torch.__version__.split("+")[0],
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print_table(
        ("model", "wall time", "CPU time", "peak memory", "output difference"),
        [
            (
                row["model"],
                f"{row['wall']:.2f}",
                f"{row['cpu']:.2f}",
                f"{row['memory']:.2f}",
                f"{row['difference']:.1e}",
            )
            for row in rows
        ],
        title="Stembridge, where demucs is 1",
    )


def compare(
    model: str, folder: Path, clip: Path, options: argparse.Namespace
) -> dict[str, float | str]:
    """Run both in turns; the medians of the rounds' ratios."""
    subject = SUBJECTS[model]
    models = folder / model.replace(" ", "-").replace(",", "")
    name = _write_checkpoints(subject, models)
    pairs = []
    for _ in range(options.rounds):
        theirs = _run(_their_command(models, name, clip, options))
        ours = _run(_our_command(models, name, clip, subject, options))
        pairs.append((ours, theirs))
    ratios = {
        "wall": [ours.wall_seconds / theirs.wall_seconds for ours, theirs in pairs],
        "cpu": [ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs],
        "memory": [ours.peak_bytes / theirs.peak_bytes for ours, theirs in pairs],
    }
    return {
        "model": model,
        **{what: round(statistics.median(values), 3) for what, values in ratios.items()},
        "difference": _difference(models, name, subject),
        "our_seconds": round(min(ours.wall_seconds for ours, _ in pairs), 1),
        "their_seconds": round(min(theirs.wall_seconds for _, theirs in pairs), 1),
        "our_gigabytes": round(max(ours.peak_bytes for ours, _ in pairs) / 1e9, 2),
        "their_gigabytes": round(max(theirs.peak_bytes for _, theirs in pairs) / 1e9, 2),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=60, help="of the clip (default: 60)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--their-jobs", default="0", help="of theirs (default: 0, its default)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    options.models = options.models or list(SUBJECTS)
    if unknown := sorted(set(options.models) - set(SUBJECTS)):
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return options


def _their_command(
    models: Path, name: str, clip: Path, options: argparse.Namespace
) -> Sequence[str]:
    command = [sys.executable, "-P", "-m", "demucs", "--repo", str(models), "-n", name]
    command += ["-d", "cpu", "--shifts", "0", "--float32", "--clip-mode", "none"]
    return [*command, "-j", options.their_jobs, "-o", str(models / "theirs"), str(clip)]


def _our_command(
    models: Path, name: str, clip: Path, subject: Subject, options: argparse.Namespace
) -> Sequence[str]:
    command = [sys.executable, "-P", "-m", "bridge.cli", "separate", str(clip), "--no-residual"]
    command += ["--model", str(models / f"{name}.yaml"), "--device", "cpu", "--shifts", "0"]
    command += ["--stems", subject.stem] if subject.stem else []
    return [*command, "--overlap", "0.25", "-o", str(models / "ours")]


def _run(command: Sequence[str]) -> Run:
    """Run a command to its end; what the system says it took."""
    watched = [sys.executable, "-c", _WATCH, *command]
    done = subprocess.run(watched, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print_json({"command": list(command), "stderr": done.stderr[-2000:]})
        raise SystemExit(1)
    wall_seconds, cpu_seconds, peak = json.loads(done.stdout)
    return Run(wall_seconds, cpu_seconds, peak * (1 if sys.platform == "darwin" else 1024))


def _difference(models: Path, name: str, subject: Subject) -> float:
    """Give the largest difference of any stem, relative to the peak of theirs."""
    worst = 0.0
    for stem in [subject.stem] if subject.stem else STEMS:
        theirs, _ = soundfile.read(models / "theirs" / name / "clip" / f"{stem}.wav")
        ours, _ = soundfile.read(models / "ours" / f"clip - {stem}.wav")
        assert ours.shape == theirs.shape
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return worst


def _write_clip(path: Path, seconds: float) -> Path:
    """Write tones that come and go over noise."""
    draw = np.random.default_rng(0)
    frames = int(seconds * SAMPLE_RATE_HZ)
    time_seconds = np.arange(frames)[:, None] / SAMPLE_RATE_HZ
    tones = sum(
        np.sin(2 * np.pi * (hz * time_seconds + draw.random(2)))
        * (0.5 + 0.5 * np.sin(2 * np.pi * rate * time_seconds))
        for hz, rate in ((55, 2.0), (220, 0.5), (660, 0.3), (3000, 4.0))
    )
    audio = 0.08 * tones + 0.05 * draw.standard_normal((frames, 2))
    soundfile.write(path, audio.astype(np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
    return path


def _write_checkpoints(subject: Subject, folder: Path) -> str:
    """Write members and bag as the public ones are; the bag's name."""
    folder.mkdir(exist_ok=True)
    module, class_name = subject.klass.split(".")
    reference = getattr(__import__(f"demucs.{module}", fromlist=[class_name]), class_name)
    signatures = []
    for member in range(subject.members):
        torch.manual_seed(member)
        network = reference(sources=STEMS, **subject.arguments)
        for name, parameter in network.named_parameters():
            if name.endswith(".scale"):
                torch.nn.init.uniform_(parameter, 0.1, 0.6)
        args, kwargs = network._init_args_kwargs
        content = io.BytesIO()
        state = {key: value.half() for key, value in network.state_dict().items()}
        package = {"klass": reference, "args": args, "kwargs": kwargs, "state": state}
        torch.save({**package, "training_args": {}}, content)
        signatures.append(f"{member:08x}")
        digest = hashlib.sha256(content.getvalue()).hexdigest()[:8]
        (folder / f"{signatures[-1]}-{digest}.th").write_bytes(content.getvalue())
    lines = [f"models: {json.dumps(signatures)}"]
    if subject.members > 1:
        weights = [[float(row == column) for column in range(4)] for row in range(4)]
        lines.append(f"weights: {json.dumps(weights)}")
    if subject.segment is not None:
        lines.append(f"segment: {subject.segment}")
    name = "bag"
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return name


def _cpu_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


if __name__ == "__main__":
    main()
