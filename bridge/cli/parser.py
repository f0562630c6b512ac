"""What ``stembridge`` takes; nothing here imports numpy or torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from bridge import __version__

FORMATS = ("wav-float32", "wav-int24", "flac")
QUALITIES = ("preview", "standard", "best")
PRECISIONS = ("auto", "float32", "float16")
_TIMES = "times as 1:07.250, 67.25 (seconds) or 336000f (frames)"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``options.module`` names the module of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="stembridge", description="Stems that live inside your DAW."
    )
    parser.add_argument("--version", action="version", version=f"stembridge {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _separate(commands)
    _render(commands)
    _session(commands)
    _models(commands)
    _doctor(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _separate(commands: _Commands) -> None:
    parser = _command(commands, "separate", "separate an audio file into stem files")
    parser.add_argument("clip", type=Path, metavar="CLIP", help="audio file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the stems"
    )
    _separation_options(parser)
    parser.add_argument(
        "--range", metavar="START:END", help=f"only this part of the file; {_TIMES}"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="storage of the stems (default: %(default)s)",
    )
    _json_option(parser)


def _render(commands: _Commands) -> None:
    parser = _command(commands, "render", "render a clip's stems into its session as new tracks")
    parser.add_argument("session", type=Path, metavar="SESSION", help="session file or folder")
    clip = parser.add_mutually_exclusive_group(required=True)
    clip.add_argument("--track", metavar="NAME", help="all clips of this track")
    clip.add_argument("--region", metavar="NAME", help="the one clip of this name")
    parser.add_argument(
        "--range", metavar="START:END", help=f"only this part of the timeline; {_TIMES}"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="work on a copy of the session in this new folder (default: SESSION-stems)",
    )
    place.add_argument(
        "--in-place",
        action="store_true",
        help="work on the session itself; 'stembridge session undo' takes it back",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put new stems in the place of those that the session has of the clip already",
    )
    _separation_options(parser)
    _json_option(parser)


def _session(commands: _Commands) -> None:
    parser = _command(commands, "session", "look at a session, or take a render back")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="tracks, clips, positions, rates")
    undo = actions.add_parser("undo", help="put the session back as it was before the last render")
    for action, name in ((show, "show"), (undo, "undo")):
        action.set_defaults(action=name)
        action.add_argument("session", type=Path, metavar="SESSION", help="session file or folder")
        _json_option(action)
    undo.add_argument(
        "--snapshot",
        action="store_true",
        help="if the session was saved since, keep that state as a snapshot beside it",
    )


def _models(commands: _Commands) -> None:
    parser = _command(commands, "models", "the models that are there")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    told = {
        "list": "what is there and what can be fetched: stems, sizes, licences, speeds, presets",
        "fetch": "get a public model; goes on where it was interrupted",
        "import": "install a checkpoint, a bag or a model's card from a file",
        "convert": "write a checkpoint or a bag as safetensors with a card",
        "remove": "remove an installed model",
        "info": "all that is known of a model",
    }
    for name, purpose in told.items():
        action = actions.add_parser(name, help=purpose)
        action.set_defaults(action=name)
        _json_option(action)
        if name in ("fetch", "remove"):
            action.add_argument("name", metavar="NAME", help="a name of 'stembridge models list'")
        if name == "info":
            action.add_argument("name", metavar="NAME", help="a name, or a model file")
        if name in ("import", "convert"):
            action.add_argument(
                "file", type=Path, metavar="FILE", help=".th, .safetensors, .yaml or a card"
            )
            action.add_argument("--name", metavar="N", help="what to call it")
        if name == "convert":
            action.add_argument(
                "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for it"
            )


def _doctor(commands: _Commands) -> None:
    parser = _command(commands, "doctor", "what is installed, what is missing, how to get it")
    _json_option(parser)


def _command(commands: _Commands, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:])
    parser.set_defaults(module=f"bridge.cli.{name}")
    return parser


def _separation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default="standard",
        help="model, shifts and overlap that belong together (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        help="a name of 'stembridge models list', a model file, or auto for the best installed"
        " (default: that of --quality)",
    )
    parser.add_argument(
        "--stems",
        metavar="A,B",
        help="only these stems, for example vocals,drums; 'accompaniment' is the clip without"
        " the others (default: all)",
    )
    parser.add_argument(
        "--residual",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also write what the stems leave of the clip, so that all files sum back to it",
    )
    parser.add_argument(
        "--shifts",
        type=_count(0),
        metavar="N",
        help="average N predictions at random shifts: slower, a little better (default: that of"
        " --quality)",
    )
    parser.add_argument(
        "--overlap",
        type=_share,
        metavar="R",
        help="share of a segment heard again by the next, 0 to 0.9 (default: that of --quality)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda, mps (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="float16 is faster on CUDA devices, and less exact (default: auto, which is float32)",
    )
    parser.add_argument(
        "--jobs",
        type=_count(1),
        default=1,
        metavar="N",
        help="segments worked on at once, on the processor (default: 1)",
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


class _count:  # noqa: N801  # used as a function
    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, text: str) -> int:
        if not text.isdecimal() or int(text) < self._least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a count from {self._least} on")
        return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 0.9")
    return share
