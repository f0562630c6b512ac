"""Command line: render the songs of a split."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import get_args

from models.train.songs.assets import AssetsMissing, Split, require
from models.train.songs.render import SongRequest, render_to
from models.train.songs.voices import default_cache_folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.train.songs",
        description="Render multitrack songs for training: DATA/SPLIT/SONG/{drums,bass,other,"
        "vocals}.flac and song.json. Songs already there are kept.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DATA", help="data folder")
    parser.add_argument("--split", choices=get_args(Split), required=True)
    parser.add_argument("--songs", type=int, required=True, help="how many songs")
    parser.add_argument("--first", type=int, default=0, help="index of the first song")
    parser.add_argument("--seed", type=int, default=0, help="first part of every song's seed")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of a song")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--shippable", action="store_true", help="only instruments whose renders may be distributed"
    )
    parser.add_argument(
        "--full", action="store_true", help="every stem plays in every section, for demonstrations"
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache_folder(), help="folder for analysed voices"
    )
    return parser


def _render_all(
    requests: Sequence[SongRequest], split_folder: Path, cache: Path, jobs: int
) -> None:
    started = time.monotonic()
    # Spawned, not forked: FluidSynth and pedalboard keep threads that a fork would lose.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending = {
            pool.submit(render_to, request, split_folder / request.song_id, cache)
            for request in requests
        }
        finished = 0
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if error is not None:
                    for other in pending:
                        other.cancel()
                    raise error
                finished += 1
                left = (time.monotonic() - started) / finished * (len(requests) - finished)
                print(
                    f"{future.result()}  {finished}/{len(requests)}  {left / 60:.1f} min left",
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 for a wrong call or missing instruments."""
    options = _parser().parse_args(arguments)
    if (
        options.songs < 1
        or options.jobs < 1
        or options.seconds < 1
        or min(options.seed, options.first) < 0
    ):
        print(
            "--songs, --jobs and --seconds must be at least 1, --seed and --first at least 0",
            file=sys.stderr,
        )
        return 2
    split_folder: Path = options.out / options.split
    wanted = [
        SongRequest(
            options.split, options.seed, index, options.seconds, options.shippable, options.full
        )
        for index in range(options.first, options.first + options.songs)
    ]
    missing = [r for r in wanted if not (split_folder / r.song_id / "song.json").is_file()]
    try:
        require(options.split, options.shippable)
        split_folder.mkdir(parents=True, exist_ok=True)
        if missing:
            _render_all(missing, split_folder, options.cache, options.jobs)
    except AssetsMissing as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
