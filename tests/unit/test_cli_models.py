"""``stembridge models``: what a user types and reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.separator.presets import PRESETS
from models import catalogue, registry, store
from tests.conftest import CommandResult
from tests.unit.checkpoint_workshop import package_of, reference, write_th
from tests.unit.file_server import Files, serve

Command = Callable[..., CommandResult]
SMALL = {"depth": 2, "dconv_mode": 0, "lstm_layers": 0, "resample": False, "segment": 0.1}


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path / "users"))
    return tmp_path / "users"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_th(tmp_path, package_of(reference("demucs", **SMALL)))


@pytest.fixture
def files(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A server that has the checkpoint, which the catalogue calls "simple"."""
    signature, _, sha256_prefix = checkpoint.stem.partition("-")
    file = catalogue.OfficialFile(signature, sha256_prefix, "folder/")
    model = replace(catalogue.OFFICIAL_MODELS["htdemucs"], name="simple", files=(file,))
    monkeypatch.setitem(catalogue.OFFICIAL_MODELS, "simple", model)
    files = Files({f"/folder/{file.name}": checkpoint.read_bytes()})
    with serve(files) as address:
        monkeypatch.setenv(catalogue.MIRRORS_VARIABLE, address)
        yield files


def answer(done: CommandResult) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def refused(done: CommandResult) -> str:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("stembridge: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_list_names_what_is_there_and_what_can_be_had(stembridge: Command, users: Path) -> None:
    store.record_speed(registry.DEFAULT_MODEL, 0.123, "cpu")
    told = answer(stembridge("models", "list", "--json"))
    assert told["auto"] == registry.DEFAULT_MODEL
    assert told["folder"] == str(users)
    models = {model["name"]: model for model in told["models"]}
    assert models.keys() == catalogue.OFFICIAL_MODELS.keys() | {registry.DEFAULT_MODEL}
    own = models[registry.DEFAULT_MODEL]
    assert own["installed"] is True
    assert own["size_bytes"] > 1_000_000
    assert own["speed"]["real_time_factor"] == 0.123
    assert models["htdemucs"]["installed"] is False
    assert models["htdemucs"]["speed"] is None
    assert models["htdemucs_6s"]["stems"][-2:] == ["guitar", "piano"]
    assert "take mdx," in models["mdx_q"]["refused"]
    assert [preset["name"] for preset in told["presets"]] == list(PRESETS)
    assert all(preset["relative_cost"] > 0 for preset in told["presets"])


def test_list_for_reading(stembridge: Command, checkpoint: Path) -> None:
    store.install(checkpoint, "htdemucs")
    store.record_speed("htdemucs", 0.5, "cpu")
    lines = stembridge("models", "list").stdout.splitlines()
    (line,) = (line for line in lines if "htdemucs (auto)" in line)
    assert "yes" in line
    assert "0.50 (cpu)" in line
    assert any("htdemucs_ft" in line and "about 336 MB" in line for line in lines)
    assert any("mdx_q" in line and "cannot be" in line for line in lines)
    for name in PRESETS:
        assert any(f" {name} " in line for line in lines)


def test_import_info_remove(stembridge: Command, checkpoint: Path, users: Path) -> None:
    told = answer(stembridge("models", "import", checkpoint, "--name", "mine", "--json"))
    assert told["name"] == "mine"
    assert told["path"] == str(users / "mine.safetensors")
    info = answer(stembridge("models", "info", "mine", "--json"))
    assert info["installed"] is True
    assert info["segment_seconds"] == 0.1
    assert info["training"]["file"] == checkpoint.name
    text = stembridge("models", "info", "mine").stdout
    assert "stems: drums, bass, other, vocals\n" in text
    assert "installed: yes\n" in text
    assert "mine" in stembridge("models", "list").stdout
    size_bytes = info["size_bytes"]
    assert answer(stembridge("models", "remove", "mine", "--json"))["freed_bytes"] == size_bytes
    assert "no model 'mine'" in refused(stembridge("models", "remove", "mine"))
    assert "no model 'mine'" in refused(stembridge("models", "info", "mine"))
    assert "mine is installed" in stembridge("models", "import", checkpoint, "--name=mine").stdout
    assert "mine is removed" in stembridge("models", "remove", "mine").stdout


def test_a_bag(stembridge: Command, tmp_path: Path) -> None:
    for signature in ("aaaa", "bbbb"):
        write_th(tmp_path, package_of(reference("demucs", **SMALL)), signature)
    (tmp_path / "pair.yaml").write_text("models: [aaaa, bbbb]\nsegment: 1")
    assert answer(stembridge("models", "import", tmp_path / "pair.yaml", "--json"))["name"] == (
        "pair"
    )
    info = answer(stembridge("models", "info", "pair", "--json"))
    assert info["architecture"] == "bag"
    assert info["segment_seconds"] == 1
    assert info["members"] == [
        {"name": "aaaa", "weights": [1, 1, 1, 1]},
        {"name": "bbbb", "weights": [1, 1, 1, 1]},
    ]
    assert '"name": "aaaa"' in stembridge("models", "info", "pair").stdout


def test_info_of_what_is_not_here(stembridge: Command, checkpoint: Path) -> None:
    info = answer(stembridge("models", "info", "hdemucs_mmi", "--json"))
    assert (info["installed"], info["licence"]) == (False, "MIT")
    assert info["trained_on"].startswith("MUSDB18-HQ")
    assert answer(stembridge("models", "info", checkpoint, "--json"))["architecture"] == "demucs"


def test_convert(stembridge: Command, checkpoint: Path, tmp_path: Path, users: Path) -> None:
    out = tmp_path / "out"
    told = answer(stembridge("models", "convert", checkpoint, "-o", out, "--json"))
    assert told["path"] == str(out / "abcd1234.safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["abcd1234.json", "abcd1234.safetensors"]
    assert not users.exists()
    done = stembridge("models", "convert", checkpoint, "-o", out, "--name", "other")
    assert f"other is written to {out}" in done.stdout


def test_fetch(stembridge: Command, files: Files, users: Path) -> None:
    done = stembridge("models", "fetch", "simple", "--json")
    assert answer(done)["name"] == "simple"
    assert "100 %" in done.stderr
    assert len(files.asked) == 1
    assert "simple is installed" in stembridge("models", "fetch", "simple").stdout
    assert len(files.asked) == 1
    assert sorted(path.suffix for path in users.glob("[!.]*")) == [".json", ".safetensors"]


def test_fetch_refusals(stembridge: Command, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "take mdx_extra," in refused(stembridge("models", "fetch", "mdx_extra_q"))
    assert "no public model 'nothing'" in refused(stembridge("models", "fetch", "nothing"))
    monkeypatch.setattr(catalogue, "ORIGIN", "http://127.0.0.1:1/")
    files.contents.clear()
    done = stembridge("models", "fetch", "simple")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("stembridge: cannot get abcd1234-")
    assert "STEMBRIDGE_MIRRORS" in line  # what to do
    assert "it answered 404" in line
    assert "127.0.0.1:1: Connection refused" in line


def test_mistakes_are_one_line(stembridge: Command, tmp_path: Path) -> None:
    (tmp_path / "text.th").write_text("hello")
    refused(stembridge("models", "import", tmp_path / "text.th"))
    refused(stembridge("models", "import", tmp_path / "absent.th"))
    refused(stembridge("models", "import", tmp_path))
    refused(stembridge("models", "convert", tmp_path / "text.th", "-o", tmp_path / "out"))
    refused(stembridge("models", "info", tmp_path / "text.th"))
    (tmp_path / "file").write_text("")
    checkpoint = write_th(tmp_path, package_of(reference("demucs", **SMALL)))
    refused(stembridge("models", "convert", checkpoint, "-o", tmp_path / "file"))
    assert stembridge("models").returncode == 2
    assert stembridge("models", "dance").returncode == 2


FETCHING = """
import sys
from dataclasses import replace
from models import catalogue, download
download.BLOCK_BYTES = 1000
file = catalogue.OfficialFile(*sys.argv[1].split("-"), "folder/")
catalogue.OFFICIAL_MODELS["simple"] = replace(
    catalogue.OFFICIAL_MODELS["htdemucs"], name="simple", files=(file,)
)
from bridge.cli import main
sys.exit(main(["models", "fetch", "simple"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_keeps_what_came(files: Files, checkpoint: Path, users: Path) -> None:
    files.block_bytes, files.pause_seconds = 1000, 0.2
    command = [sys.executable, "-P", "-c", FETCHING, checkpoint.stem]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = users / "downloads" / f"{checkpoint.name}.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == (
        "stembridge: cancelled; what was received is kept, and the same command goes on from there"
    )
    assert part.stat().st_size > 0
