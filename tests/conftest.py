"""What tests of several rooms share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Whoever starts the tests in the background makes them, and the commands that they start, deaf to
# Ctrl-C, which some of them are about.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True, scope="session")
def _no_models_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the user has installed out of the tests, and the tests out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user-data")))
        patch.delenv("STEMBRIDGE_MODELS", raising=False)
        yield


@pytest.fixture
def stembridge(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., CommandResult]]:
    """The command line, run in this process: torch is loaded only once."""
    from bridge.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        try:
            returncode = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's own
            returncode = int(end.code or 0)
        captured = capsys.readouterr()
        return CommandResult(returncode, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def as_user(tmp_path: Path) -> Iterator[None]:
    """Give up root's rights for a test, and the test's folder to whom it then runs as."""
    if os.name != "posix":
        pytest.skip("file permissions of POSIX are tested")
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, nobody, nobody)
    for folder in tmp_path.parents[:3]:  # pytest keeps its folders to their owner
        folder.chmod(0o711)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a small random waveform Demucs: a real checkpoint that is quick to run."""
    return random_model(tmp_path_factory.mktemp("model"), channels=4, depth=4, lstm_layers=1)


def random_model(folder: Path, **shape: Any) -> Path:
    """Save a waveform Demucs with random weights and return its card."""
    import torch

    from models.cards import ModelCard
    from models.checkpoints import save_checkpoint
    from models.demucs import Demucs, DemucsConfig

    config = DemucsConfig(resample=False, segment_frames=44100 * 2, **shape)
    torch.manual_seed(5)
    card = ModelCard(
        name="tiny",
        architecture="demucs",
        config=config.to_dict(),
        stems=config.sources,
        sample_rate_hz=config.sample_rate_hz,
        audio_channels=config.audio_channels,
        segment_frames=config.segment_frames,
        weights_path=folder / "tiny.safetensors",
        weights_sha256="",
        weights_dtype="float32",
        licence="GPL-3.0-or-later",
        description="random weights for tests",
    )
    save_checkpoint(card, Demucs(config).state_dict(), folder)
    return folder / "tiny.json"
