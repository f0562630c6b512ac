"""``python -m models.train.export RUN --name NAME --data DATA``: a run's result as a model.

Writes the averaged weights as safetensors and the model's card, with its scores, into
``models/weights`` or the folder of ``--out``. Weights are stored as float16 where that costs less
than 0.05 dB on every stem.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from models.cards import ModelCard
from models.checkpoints import Network, architecture_of, load_network, save_checkpoint
from models.registry import SHIPPED_FOLDER
from models.train.data import SAMPLE_RATE_HZ, STEMS, SongLibrary, song_folders
from models.train.evaluate import evaluate, table
from models.train.loop import Trainer, validate
from models.train.songs.assets import named

__all__ = ["export"]

DESCRIPTION = (
    "A small spectrogram U-Net: drums, bass, other and vocals, trained for about an hour on a"
    " processor with songs that this project renders itself."
)
NOT_GOOD_FOR = (
    "Released music as a whole: every training song is rendered from sound fonts, drum kits and"
    " synthesis, so scores on real recordings will be lower than those below.",
    "Real singing: the training vocals come from speech synthesis; quality on real singing has"
    " not been measured.",
    "Work where a studio model is affordable: this one is made to be small and quick.",
    "Separating anything but drums, bass, vocals and the rest.",
)
ALLOWED_LOSS_DB = 0.05


def export(run: Path, name: str, data: Path, out: Path, *, songs: int | None = None) -> ModelCard:
    """Write a run's averaged weights and their card; the card as written."""
    trainer = Trainer.load(run)
    network = trainer.average
    scores = {
        split: evaluate(network, data, split, limit_songs=songs)
        for split in ("unseen", "valid")
        if song_folders(data, split)
    }
    config = trainer.config.network
    card = ModelCard(
        name=name,
        architecture=architecture_of(config),
        config=config.to_dict(),
        stems=config.sources,
        sample_rate_hz=config.sample_rate_hz,
        audio_channels=config.audio_channels,
        segment_frames=config.segment_frames,
        weights_path=out / f"{name}.safetensors",
        weights_sha256="",
        weights_dtype="float16",
        licence="GPL-3.0-or-later",
        description=DESCRIPTION,
        data=data_sources(data),
        training=training_facts(trainer, data),
        scores={"unit": "nSDR in dB over whole songs", **scores},
        not_good_for=NOT_GOOD_FOR,
    )
    written = save_checkpoint(card, network.state_dict(), out)
    if rounding_loss_db(written, network, data, songs) > ALLOWED_LOSS_DB:
        written = save_checkpoint(replace(card, weights_dtype="float32"), network.state_dict(), out)
    return written


def data_sources(data: Path) -> list[dict[str, Any]]:
    """List what the training songs were made of: each instrument with its licence and makers."""
    used: Counter[str] = Counter()
    for folder in song_folders(data, "train"):
        used.update(set(_asset_names(json.loads((folder / "song.json").read_text())["assets"])))
    sources = []
    for name in sorted(used):
        asset = named(name)
        sources.append(
            {
                "name": name,
                "licence": asset.licence,
                "attribution": asset.attribution,
                "songs": used[name],
            }
        )
    return sources


def _asset_names(assets: Any) -> Iterator[str]:
    """All names in a song's nest of assets."""
    if isinstance(assets, str):
        yield assets
    elif isinstance(assets, dict | list):
        for part in assets.values() if isinstance(assets, dict) else assets:
            yield from _asset_names(part)


def training_facts(trainer: Trainer, data: Path) -> dict[str, Any]:
    """How the weights came about."""
    config = trainer.config
    folders = song_folders(data, "train")
    frames = sum(soundfile.info(folder / f"{STEMS[0]}.flac").frames for folder in folders)
    heard = trainer.step_count * config.batch_size * config.segment_frames
    return {
        "command": "python -m models.train",
        "songs": len(folders),
        "songs_minutes": round(frames / SAMPLE_RATE_HZ / 60),
        "steps": trainer.step_count,
        "hours": round(trainer.elapsed_seconds / 3600, 2),
        "heard_hours": round(heard / SAMPLE_RATE_HZ / 3600, 1),
        "machine": "two shared processor cores, no GPU",
        "loss": "negative SDR per stem, averaged weights",
        "batch_size": config.batch_size,
        "segment_frames": config.segment_frames,
        "learning_rate": config.learning_rate,
    }


def rounding_loss_db(card: ModelCard, network: Network, data: Path, songs: int | None) -> float:
    """Measure the most that any stem's score loses from how the weights are stored."""
    stored = load_network(card)
    valid = SongLibrary(data, "valid", limit_songs=songs or 8)
    before, after = validate(network, valid), validate(stored, valid)
    return max(before[key] - after[key] for key in before)


def main(argv: list[str] | None = None) -> int:
    """Export and print the scores."""
    parser = argparse.ArgumentParser(prog="python -m models.train.export", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, required=True, help="to score the model with")
    parser.add_argument("--out", type=Path, default=SHIPPED_FOLDER)
    parser.add_argument("--songs", type=int, help="score only the first songs of each split")
    arguments = parser.parse_args(argv)
    try:
        card = export(
            arguments.run, arguments.name, arguments.data, arguments.out, songs=arguments.songs
        )
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    size_mb = card.weights_path.stat().st_size / 1e6
    print(f"{card.weights_path}: {size_mb:.1f} MB, {card.weights_dtype}")
    for split, scores in card.scores.items():
        if isinstance(scores, dict):
            print(f"\n{split}\n{table(scores)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
