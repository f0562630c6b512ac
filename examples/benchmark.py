"""Speed and memory of the main job on this machine: ``make benchmark``.

Timings are ratios of runs side by side; what they are on another machine is for that to say.
``python examples/benchmark.py 120`` also separates a clip of 120 minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from bridge.cli.console import print_line, print_table
from models.registry import DEFAULT_MODEL

_WATCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
print(json.dumps([json.loads(done.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def main() -> None:
    """Measure a minute and ten, the start of the command, and the default against its options."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        runs: list[tuple[int, tuple[str, ...]]] = [
            (1, ()),
            (1, ("--jobs", "2")),
            (1, ("--shifts", "2")),
            (10, ()),
            *((int(minutes), ()) for minutes in sys.argv[1:]),
        ]
        for minutes, options in runs:
            result, peak_bytes = separate(folder, minutes, options)
            rows.append(
                (
                    f"{minutes} min {' '.join(options)}",
                    f"{result['real_time_factor']:.3f}",
                    f"{peak_bytes / 1e9:.2f} GB",
                    f"{result['null_db']:.0f} dBFS",
                )
            )
        print_table(("clip", "real-time factor", "peak memory", "null"), rows)
    for start in (("-m", "bridge.cli", "--help"), ("-c", "import bridge")):
        seconds, ratio = start_up(*start)
        print_line(f"python {' '.join(start)}: {seconds:.2f} s, {ratio:.1f} times an empty Python")


def separate(folder: Path, minutes: int, options: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """Return the command's JSON and the peak of its resident memory."""
    clip = folder / f"{minutes}.wav"
    draw = np.random.default_rng(0)
    minute = draw.standard_normal((44100 * 60, 2)).astype(np.float32) * 0.1
    with soundfile.SoundFile(clip, "w", 44100, 2, subtype="FLOAT") as file:
        for _ in range(minutes):
            file.write(minute)
    command = [sys.executable, "-P", "-m", "bridge.cli", "separate", str(clip)]
    command += ["-o", str(folder / "stems"), "--model", DEFAULT_MODEL, "--json", *options]
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *command], stdout=subprocess.PIPE, check=True
    )
    result, peak = json.loads(done.stdout)
    return result, peak * (1 if sys.platform == "darwin" else 1024)


def start_up(*arguments: str) -> tuple[float, float]:
    """Return the seconds of a process, and their ratio to a Python that does nothing."""

    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(10):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-P", *arguments], stdout=subprocess.DEVNULL, check=True
            )
            times.append(time.perf_counter() - started)
        return min(times)

    empty = seconds("-c", "pass")
    taken = seconds(*arguments)
    return taken, taken / empty


if __name__ == "__main__":
    main()
