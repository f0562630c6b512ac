"""The training loop: steps, schedule, averaged weights, validation, and state on disk.

A run lives in one folder: ``state.pt`` (all that is needed to go on), ``log.csv`` (a row per
report) and nothing else. Stopping and resuming gives the same weights as an unbroken run, as long
as the schedule counts steps and the songs stay the same: step N draws its examples from a
generator seeded with (seed, N), so there is no random state to save.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import ARCHITECTURES, Config, Network, architecture_of
from models.demucs import DemucsConfig
from models.spectral import SpectralConfig
from models.train.augment import Augmentation, draw_batch
from models.train.data import STEMS, SongLibrary
from models.train.loss import separation_loss
from models.train.metrics import nsdr_db

__all__ = ["PRESETS", "Trainer", "TrainingConfig", "load_run", "validate"]

# The networks that can be asked for by name.
PRESETS: dict[str, Config] = {
    "small": SpectralConfig(),
    "demucs": DemucsConfig(
        channels=32, max_channels=384, depth=6, resample=False, segment_frames=352800
    ),
    "tiny": SpectralConfig(
        window_frames=512, hop_frames=128, channels=2, lstm_channels=4, segment_frames=44100
    ),
    "tiny-demucs": DemucsConfig(channels=4, depth=3, resample=False, segment_frames=44100),
}
STATE_FILE = "state.pt"
LOG_FILE = "log.csv"


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. Give either `minutes` or `steps`: the schedule fits into it."""

    network: Config
    minutes: float | None = None
    steps: int | None = None
    batch_size: int = 2
    segment_frames: int = 88064
    learning_rate: float = 2.5e-3
    warmup_steps: int = 100
    final_rate: float = 0.01  # of learning_rate, at the end of the schedule
    clip_norm: float = 5.0
    average_decay: float = 0.999
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps")

    def to_dict(self) -> dict[str, Any]:
        """Give the config in plain types."""
        architecture = architecture_of(self.network)
        return {**asdict(self), "architecture": architecture, "network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from :meth:`to_dict`'s result."""
        values = dict(values)
        config_class, _ = ARCHITECTURES[values.pop("architecture")]
        network = config_class.from_dict(values["network"])
        augmentation = Augmentation(**values["augmentation"])
        return cls(**{**values, "network": network, "augmentation": augmentation})


class Trainer:
    """A network in training; :meth:`save` and :meth:`load` carry everything over a restart."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        _, network_class = ARCHITECTURES[architecture_of(config.network)]
        self.network = network_class(config.network)
        # The average starts as a copy and is what gets validated and shipped.
        self.average = network_class(config.network)
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99)
        )
        self.step_count = 0
        self.elapsed_seconds = 0.0  # of the run, over all restarts

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.step_count / self.config.steps)
        return min(1.0, self.elapsed_seconds / (60 * (self.config.minutes or 1)))

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to the final rate."""
        config = self.config
        warmup = min(1.0, (self.step_count + 1) / max(1, config.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return (
            config.learning_rate * warmup * (config.final_rate + (1 - config.final_rate) * cosine)
        )

    def step(self, library: SongLibrary) -> dict[str, float]:
        """Train on one batch; what to log of it."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step_count])
        batch = draw_batch(
            library, rng, config.batch_size, config.segment_frames, config.augmentation
        )
        sources = torch.from_numpy(batch)  # (batch, stems, channels, frames)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        loss = separation_loss(self.network(sources.sum(dim=1)), sources)
        self.optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        if torch.isfinite(norm):  # a bad batch must not end a long run
            self.optimizer.step()
        self.step_count += 1
        self._update_average()
        values = {"loss": loss.total.item(), "leak": loss.leak.item(), "norm": norm.item()}
        return values | {
            f"train_{stem}": value for stem, value in zip(STEMS, loss.sdr_db.tolist(), strict=True)
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on, a long average would mostly remember the random start.
        decay = min(self.config.average_decay, (1 + self.step_count) / (10 + self.step_count))
        averages, currents = self.average.parameters(), self.network.parameters()
        for average, current in zip(averages, currents, strict=True):
            average.lerp_(current, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)  # statistics of normalisations are averages by themselves

    def save(self, run: Path) -> None:
        """Write ``state.pt`` into the run's folder, under its final name only when complete."""
        run.mkdir(parents=True, exist_ok=True)
        state = {
            "config": self.config.to_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step_count": self.step_count,
            "elapsed_seconds": self.elapsed_seconds,
        }
        unfinished = run / (STATE_FILE + ".part")
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(run / STATE_FILE)

    @classmethod
    def load(cls, run: Path, **changes: Any) -> Trainer:
        """Continue a run, with some of its config's fields changed if need be."""
        state = load_run(run)
        trainer = cls(TrainingConfig.from_dict({**state["config"], **changes}))
        trainer.network.load_state_dict(state["network"])
        trainer.average.load_state_dict(state["average"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.step_count = state["step_count"]
        trainer.elapsed_seconds = state["elapsed_seconds"]
        return trainer

    def run(
        self,
        library: SongLibrary,
        folder: Path,
        *,
        valid: SongLibrary | None = None,
        report_seconds: float = 60,
        valid_seconds: float = 300,
        save_seconds: float = 180,
        stopped: Callable[[], bool] = lambda: False,
        report: Callable[[dict[str, float]], None] = lambda row: None,
    ) -> None:
        """Train to the end of the schedule, or until `stopped`; the state is saved either way."""
        last = now = time.monotonic()
        last_report, last_valid, last_save = now, now, now
        recent: list[dict[str, float]] = []
        while self.progress < 1 and not stopped():
            recent.append(self.step(library))
            now = time.monotonic()
            self.elapsed_seconds += now - last  # of validation and saving, too
            last = now
            ending = self.progress >= 1
            if now - last_report >= report_seconds or ending:
                row = self._row(recent, library)
                if valid is not None and (now - last_valid >= valid_seconds or ending):
                    valid.rescan()
                    row |= validate(self.average, valid)
                    last_valid = now
                library.rescan()
                append_log(folder / LOG_FILE, row)
                report(row)
                recent, last_report = [], now
            if now - last_save >= save_seconds:
                self.save(folder)
                last_save = now
        self.save(folder)

    def _row(self, recent: list[dict[str, float]], library: SongLibrary) -> dict[str, float]:
        row = {
            "step": float(self.step_count),
            "minutes": self.elapsed_seconds / 60,
            "songs": float(len(library.songs)),
            "rate": self.learning_rate,
        }
        for key in recent[0]:
            row[key] = _mean([step[key] for step in recent])
        return row


def validate(
    network: Network, library: SongLibrary, songs: int = 8, seconds: float = 12
) -> dict[str, float]:
    """Mean nSDR per stem over the middles of a few songs: quick, for watching a run."""
    scores: dict[str, list[float]] = {stem: [] for stem in STEMS}
    rate_hz = network.config.sample_rate_hz
    for song in library.songs[:songs]:
        frames = min(song.frames, int(seconds * rate_hz))
        sources = song.sources((song.frames - frames) // 2, frames)
        with torch.no_grad():
            mixture: Tensor = torch.from_numpy(sources.sum(axis=0))[None]
            stems = network(mixture)[0].numpy()
        for index, stem in enumerate(STEMS):
            scores[stem].append(nsdr_db(sources[index], stems[index]))
    return {f"valid_{stem}": _mean(values) for stem, values in scores.items()}


def _mean(values: list[float]) -> float:
    """Average those that are numbers; NaN if none is."""
    numbers = [value for value in values if math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def load_run(run: Path) -> dict[str, Any]:
    """Read a run's ``state.pt``; only tensors and plain values are accepted."""
    path = run / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {STATE_FILE} in {run}; this is not a training run")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


LOG_COLUMNS = (
    *("step", "minutes", "songs", "rate", "loss", "leak", "norm"),
    *(f"train_{stem}" for stem in STEMS),
    *(f"valid_{stem}" for stem in STEMS),
)


def append_log(path: Path, row: dict[str, float]) -> None:
    """Append a row to a run's log, with a header if it is the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
