"""``python -m models.train.evaluate --model NAME_OR_PATH --data DATA --split unseen [--json]``.

Scores a model on whole songs, beside what takes no learning and what masks could do at best.
MODEL is the name of a model, the path of a model's card or weights, or a training run's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models import registry
from models.cards import BagCard
from models.checkpoints import Network, load_network
from models.errors import ModelError
from models.train.baselines import classic_stems, equal_shares, oracle_stems
from models.train.data import STEMS, Song, iterate_songs
from models.train.loop import STATE_FILE, Trainer
from models.train.metrics import nsdr_db

__all__ = ["Scores", "evaluate", "separate_song"]

FloatArray = npt.NDArray[np.float32]
Scores = dict[str, dict[str, dict[str, float]]]  # method → stem → {"median", "mean"} of nSDR, dB


def separate_song(network: Network, mixture: FloatArray, overlap: float = 0.25) -> FloatArray:
    """Separate a whole song in segments that fade into each other.

    Parameters
    ----------
    network : Demucs or SpectralUNet
        In evaluation mode.
    mixture : ndarray
        (channels, frames).
    overlap : float
        The share of a segment that the next one sees again.

    Returns
    -------
    ndarray
        (stems, channels, frames)
    """
    channels, frames = mixture.shape
    segment_frames = min(network.config.segment_frames, frames)
    stride_frames = max(1, round(segment_frames * (1 - overlap)))
    ramp = np.arange(1, segment_frames + 1, dtype=np.float32)
    fade = np.minimum(ramp, ramp[::-1]) / ramp.max()  # a triangle
    stems = np.zeros((len(network.config.sources), channels, frames), dtype=np.float32)
    weight = np.zeros(frames, dtype=np.float32)
    for start in range(0, max(1, frames - segment_frames + stride_frames), stride_frames):
        part = mixture[:, start : start + segment_frames]
        with torch.no_grad():
            estimate = network(torch.from_numpy(np.ascontiguousarray(part))[None])[0].numpy()
        stop = start + part.shape[-1]
        stems[..., start:stop] += estimate * fade[: part.shape[-1]]
        weight[start:stop] += fade[: part.shape[-1]]
    return stems / weight


def evaluate(
    network: Network,
    data: Path,
    split: str,
    *,
    limit_songs: int | None = None,
    report: Callable[[str, dict[str, list[float]]], None] = lambda name, scores: None,
) -> Scores:
    """Score the model, and what it is compared with, over a split's songs: nSDR per stem."""
    methods: dict[str, Callable[[FloatArray], FloatArray]] = {
        "model": lambda sources: separate_song(network, sources.sum(axis=0)),
        "mixture/4": lambda sources: equal_shares(sources.sum(axis=0)),
        "classic": lambda sources: classic_stems(sources.sum(axis=0)),
        "oracle mask": oracle_stems,
    }
    values: dict[str, list[list[float]]] = {name: [] for name in methods}
    for index, song in enumerate(iterate_songs(data, split)):
        if limit_songs is not None and index >= limit_songs:
            break
        scores = {name: score_song(method, song) for name, method in methods.items()}
        for name, row in scores.items():
            values[name].append(row)
        report(song.name, scores)
    return {name: _summary(np.array(rows)) for name, rows in values.items()}


def score_song(method: Callable[[FloatArray], FloatArray], song: Song) -> list[float]:
    """Measure the nSDR of each stem of one song; NaN where a stem is silent throughout."""
    sources = song.sources()
    stems = method(sources)
    return [nsdr_db(source, stem) for source, stem in zip(sources, stems, strict=True)]


def _summary(values: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """(songs, stems) to a median and a mean per stem."""
    return {
        stem: {
            "median": round(float(np.nanmedian(values[:, index])), 2),
            "mean": round(float(np.nanmean(values[:, index])), 2),
        }
        for index, stem in enumerate(STEMS)
    }


def open_network(name_or_path: str) -> Network:
    """Open a registered model, a model's files, or a run's averaged weights."""
    if (Path(name_or_path) / STATE_FILE).is_file():
        return Trainer.load(Path(name_or_path)).average
    card = registry.find(name_or_path)
    if isinstance(card, BagCard):
        raise ModelError(f"{name_or_path} is a bag of models; score its members one by one")
    network = load_network(card)
    if network.config.sources != STEMS:
        raise ModelError(f"{name_or_path} does not separate {', '.join(STEMS)}")
    return network


def table(scores: Scores, kind: str = "median") -> str:
    """Lay the scores out as lines of text."""
    lines = [f"{'nSDR dB, ' + kind:18}" + "".join(f"{stem:>9}" for stem in STEMS) + "     mean"]
    for method, row in scores.items():
        numbers = [row[stem][kind] for stem in STEMS]
        cells = "".join(f"{number:9.2f}" for number in [*numbers, float(np.mean(numbers))])
        lines.append(f"{method:18}{cells}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table, or with ``--json`` one object."""
    parser = argparse.ArgumentParser(prog="python -m models.train.evaluate", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="unseen")
    parser.add_argument("--songs", type=int, help="only the first of the split")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)

    def report(name: str, scores: dict[str, list[float]]) -> None:
        cells = "  ".join(
            f"{stem} {score:6.2f}" for stem, score in zip(STEMS, scores["model"], strict=True)
        )
        print(f"{name:24}  {cells}", file=sys.stderr, flush=True)

    try:
        network = open_network(arguments.model)
        scores = evaluate(
            network, arguments.data, arguments.split, limit_songs=arguments.songs, report=report
        )
    except (ModelError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"split": arguments.split, "nsdr_db": scores}))
    else:
        print(table(scores), table(scores, "mean"), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
