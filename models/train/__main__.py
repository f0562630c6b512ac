"""``python -m models.train --data DATA --out RUN --model small --minutes 75 [--resume]``."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import signal
import sys
from pathlib import Path
from types import FrameType

import torch

from models.train.data import STEMS, SongLibrary
from models.train.loop import PRESETS, STATE_FILE, Trainer, TrainingConfig

# Fields of the training config that can be set, and changed when a run is resumed.
SETTINGS = ("batch_size", "segment_frames", "learning_rate", "seed")


def build_parser() -> argparse.ArgumentParser:
    """Define the command's arguments."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train/ and valid/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--model", choices=sorted(PRESETS), default="small")
    parser.add_argument("--minutes", type=float, help="time to train; the schedule fits into it")
    parser.add_argument("--steps", type=int, help="steps to train, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in SETTINGS:
        kind, default = type(defaults[name]), defaults[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{default} in a new run"
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train; 0 when the schedule was completed or a signal asked to stop, with the state saved."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_memory()
    given = {
        key: value
        for key in ("minutes", "steps", *SETTINGS)
        if (value := getattr(arguments, key)) is not None
    }
    exists = (arguments.out / STATE_FILE).exists()
    if exists and not arguments.resume:
        print(f"{arguments.out} holds a run; give --resume or another --out", file=sys.stderr)
        return 2
    if exists:
        # A new measure of the schedule takes the place of the old one.
        if "minutes" in given or "steps" in given:
            given = {"minutes": None, "steps": None} | given
        trainer = Trainer.load(arguments.out, **given)
    else:
        if ("minutes" in given) == ("steps" in given):
            print("give either --minutes or --steps", file=sys.stderr)
            return 2
        trainer = Trainer(TrainingConfig(network=PRESETS[arguments.model], **given))
    library = SongLibrary(arguments.data, "train")
    valid = SongLibrary(arguments.data, "valid", limit_songs=8)
    if not library.songs:
        print(f"no songs in {arguments.data / 'train'}; render some first", file=sys.stderr)
        return 2
    parameters = sum(weights.numel() for weights in trainer.network.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, {len(library.songs)} songs, "
        f"{library.seconds / 60:.0f} minutes of music, from step {trainer.step_count}",
        flush=True,
    )
    stop = StopOnSignal()
    trainer.run(library, arguments.out, valid=valid, stopped=lambda: stop.asked, report=print_row)
    return 0


class StopOnSignal:
    """Turns SIGTERM and the first Ctrl-C into a wish to stop after the current step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_memory() -> None:
    """Have glibc keep freed memory: fresh pages for every tensor cost a quarter of the time."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)


def print_row(row: dict[str, float]) -> None:
    """One line on a stretch of training, two where there was a validation."""
    print(
        f"step {row['step']:6.0f}  {row['minutes']:5.1f} min  loss {row['loss']:7.3f}  "
        f"rate {row['rate']:.1e}  norm {row['norm']:5.1f}  leak {row['leak']:.3f}  "
        f"songs {row['songs']:.0f}  "
        + "  ".join(f"{stem} {row[f'train_{stem}']:5.2f}" for stem in STEMS),
        flush=True,
    )
    if f"valid_{STEMS[0]}" in row:
        scores = [row[f"valid_{stem}"] for stem in STEMS]
        print(
            "  valid nSDR  "
            + "  ".join(f"{stem} {score:5.2f}" for stem, score in zip(STEMS, scores, strict=True))
            + f"  mean {sum(scores) / len(scores):5.2f} dB",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
