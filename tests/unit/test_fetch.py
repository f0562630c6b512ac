"""Fetching from a real server that cuts, lies, stalls and goes away."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import catalogue, download, fetch, registry, store
from models.cards import BagCard, ModelCard
from models.download import FetchError
from models.errors import ModelError, UnknownModel
from tests.unit.checkpoint_workshop import package_of, reference, write_th
from tests.unit.file_server import Files, serve

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "/folder/file.th"
SMALL = {"depth": 2, "dconv_mode": 0, "lstm_layers": 0, "resample": False, "segment": 0.1}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(registry.FOLDERS_VARIABLE, str(tmp_path / "users"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(download, "BLOCK_BYTES", 10_000)


@pytest.fixture
def files() -> Iterator[Files]:
    """A server that has the file."""
    files = Files({PATH: CONTENT})
    with serve(files):
        yield files


@pytest.fixture
def other() -> Iterator[Files]:
    """Another that has it."""
    files = Files({PATH: CONTENT})
    with serve(files):
        yield files


def get(folder: Path, *servers: Files, **options: Any) -> Path:
    destination = folder / "file.th"
    urls = [f"{server.address}{PATH[1:]}" for server in servers]
    download.download(urls, destination, SHA256[:8], **options)
    assert destination.read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["file.th"]
    return destination


def part_of(folder: Path, content: bytes) -> Path:
    path = folder / "file.th.part"
    path.write_bytes(content)
    return path


def refused(folder: Path, *servers: Files, **options: Any) -> str:
    with pytest.raises(FetchError) as caught:
        get(folder, *servers, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert "file.th" in line
    assert not (folder / "file.th").exists()
    return line


@pytest.mark.parametrize("length", [True, False])
def test_whole(tmp_path: Path, files: Files, length: bool) -> None:
    files.length = length
    told: list[tuple[int, int | None]] = []
    get(tmp_path, files, progress=lambda *step: told.append(step))
    assert told[0] == (0, len(CONTENT) if length else None)
    assert told[-1] == (len(CONTENT), len(CONTENT) if length else None)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 50
    get(tmp_path, files)  # it is there
    assert files.asked == [(PATH, None)]


def test_goes_on_after_cuts(tmp_path: Path, files: Files) -> None:
    files.cut_after = [300_000, 1, 0, 300_000]
    get(tmp_path, files)
    ranges = [wanted for _, wanted in files.asked]
    assert ranges == [
        None,
        "bytes=300000-",
        "bytes=300001-",
        "bytes=300001-",
        "bytes=600001-",
    ]
    assert files.sent_bytes == len(CONTENT)


@pytest.mark.parametrize("ranges", ["honoured", "unknown total"])
def test_goes_on_from_what_was_left(tmp_path: Path, files: Files, ranges: str) -> None:
    files.ranges = ranges
    part_of(tmp_path, CONTENT[:900_000])
    get(tmp_path, files)
    assert files.asked == [(PATH, "bytes=900000-")]
    assert files.sent_bytes == 100_000


def test_begins_again_where_ranges_are_ignored(tmp_path: Path, files: Files) -> None:
    files.ranges = "ignored"
    part_of(tmp_path, CONTENT[:900_000])
    get(tmp_path, files)
    assert files.sent_bytes == len(CONTENT)


def test_a_part_that_is_complete_needs_no_server(tmp_path: Path, files: Files) -> None:
    part_of(tmp_path, CONTENT)
    get(tmp_path, files)
    assert files.asked == []


@pytest.mark.parametrize("wrong", [b"x" * 900_000, b"x" * 2_000_000, b"x" * len(CONTENT)])
def test_a_wrong_part_is_thrown_away(tmp_path: Path, files: Files, wrong: bytes) -> None:
    part_of(tmp_path, wrong)
    get(tmp_path, files)
    assert files.asked[-1] == (PATH, None)


def test_another_part_than_asked_for(tmp_path: Path, files: Files, other: Files) -> None:
    files.ranges = "wrong"
    part = part_of(tmp_path, CONTENT[:900_000])
    assert "sent another part" in refused(tmp_path, files)
    assert part.read_bytes() == CONTENT[:900_000]
    get(tmp_path, files, other)
    assert other.sent_bytes == 100_000


def test_wrong_content_is_never_kept(tmp_path: Path, files: Files, other: Files) -> None:
    files.contents[PATH] = bytes(len(CONTENT))
    line = refused(tmp_path, files)
    assert "wrong SHA-256" in line
    assert "are kept" not in line
    assert list(tmp_path.iterdir()) == []
    notes: list[str] = []
    get(tmp_path, files, other, note=notes.append)
    assert len(notes) == 1
    assert "wrong SHA-256" in notes[0]


def test_a_wrong_file_under_the_final_name(tmp_path: Path, files: Files) -> None:
    (tmp_path / "file.th").write_bytes(b"wrong")
    get(tmp_path, files)


def test_mirrors_are_tried_in_order_and_all_reasons_told(
    tmp_path: Path, files: Files, other: Files
) -> None:
    files.contents.clear()
    other.statuses = [500] * 100
    gone = Files(address="http://127.0.0.1:1/")
    line = refused(tmp_path, files, other, gone)
    reasons = [
        f"{files.address[7:-1]}: it answered 404",
        f"{other.address[7:-1]}: it answered 500",
        "127.0.0.1:1: Connection refused",
    ]
    places = [line.index(reason) for reason in reasons]
    assert places == sorted(places)
    assert len(files.asked) == 1  # what is not there will not come
    assert len(other.asked) == download.ATTEMPTS
    other.statuses = [503]
    get(tmp_path, files, gone, other)


def test_a_mirror_goes_on_with_what_another_began(
    tmp_path: Path, files: Files, other: Files
) -> None:
    files.cut_after = [400_000] + [0] * 100
    get(tmp_path, files, other)
    assert other.asked == [(PATH, "bytes=400000-")]


def test_a_server_that_always_cuts_ends(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 20)
    files.cut_after = [1] * 1000
    line = refused(tmp_path, files)
    assert "broke off 20 times" in line
    assert "0.0 MB are kept" in line
    assert (tmp_path / "file.th.part").read_bytes() == CONTENT[:20]


def test_silence_ends(tmp_path: Path, files: Files, other: Files) -> None:
    files.silent_seconds = 0.5
    assert "no answer in time" in refused(tmp_path, files, timeout_seconds=0.05)
    get(tmp_path, files, other, timeout_seconds=0.05)


@pytest.mark.parametrize("length", [True, False])
def test_too_much_is_refused(tmp_path: Path, files: Files, length: bool) -> None:
    files.length = length
    line = refused(tmp_path, files, limit_bytes=500_000)
    assert "cannot be right" in line or "more than such a file" in line
    assert files.sent_bytes <= len(CONTENT)
    left = tmp_path / "file.th.part"
    assert not left.exists() or left.stat().st_size <= 500_000


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_lead_to_http_only(tmp_path: Path, files: Files, target: str) -> None:
    files.redirect = target
    assert "leads to an address that is not followed" in refused(tmp_path, files)
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_followed_and_end(tmp_path: Path, files: Files, other: Files) -> None:
    files.redirect = f"{other.address}{PATH[1:]}"
    part_of(tmp_path, CONTENT[:600_000])
    get(tmp_path, files)
    assert other.asked == [(PATH, "bytes=600000-")]
    (tmp_path / "file.th").unlink()
    files.redirect = f"{files.address}{PATH[1:]}"
    assert "not followed" in refused(tmp_path, files)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "x"])
def test_only_http_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError):
        download.download([url], tmp_path / "file.th", SHA256[:8])
    assert list(tmp_path.iterdir()) == []


def test_room_is_looked_for_first(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(download, "SPARE_BYTES", free + 10_000_000)
    with pytest.raises(FetchError, match=f"{tmp_path} has .* MB are needed") as caught:
        get(tmp_path, files)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from models.download import FetchError, download
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)
try:
    download([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])
except FetchError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of POSIX")
def test_a_full_disk_keeps_what_it_took(tmp_path: Path, files: Files) -> None:
    url, destination = f"{files.address}{PATH[1:]}", tmp_path / "file.th"
    command = [sys.executable, "-P", "-c", LIMITED, url, str(destination), SHA256[:8]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"cannot write {destination}.part: {os.strerror(errno.EFBIG)}; mend it and run again,"
        " which goes on from the 0.3 MB that are kept\n"
    )
    get(tmp_path, files)
    assert files.asked[-1] == (PATH, "bytes=300000-")


# Whole models


@pytest.fixture
def published(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., catalogue.OfficialModel]:
    """Publish small networks at the server as a model of the catalogue."""

    def publish(name: str, *channels: int, **changes: Any) -> catalogue.OfficialModel:
        official = []
        for width in channels:
            package = package_of(reference("demucs", **SMALL | {"channels": width}))
            path = write_th(tmp_path / "published", package, f"net{width}")
            signature, _, sha256_prefix = path.stem.partition("-")
            official.append(catalogue.OfficialFile(signature, sha256_prefix, "folder/"))
            files.contents[f"/folder/{path.name}"] = path.read_bytes()
        model = replace(
            catalogue.OFFICIAL_MODELS["htdemucs"], name=name, files=tuple(official), **changes
        )
        monkeypatch.setitem(catalogue.OFFICIAL_MODELS, name, model)
        return model

    monkeypatch.setenv(catalogue.MIRRORS_VARIABLE, files.address)
    return publish


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_model_is_fetched(tmp_path: Path, files: Files, published: Any) -> None:
    model = published("simple", 4, segment_seconds=0.2)
    steps: list[tuple[str, int, int | None]] = []
    card = fetch.fetch("simple", lambda *step: steps.append(step))
    assert isinstance(card, ModelCard)
    assert (card.name, card.licence, card.segment_frames) == ("simple", "MIT", 8820)
    assert card.data == [{"name": model.trained_on, "link": model.link}]
    assert names(tmp_path / "users") == ["simple.json", "simple.safetensors"]
    assert {step[0] for step in steps} == {"net4"}
    registry.load("simple")
    assert fetch.fetch("simple") == card
    assert len(files.asked) == 1
    card.weights_path.write_bytes(b"damaged")
    fetch.fetch("simple")
    registry.load("simple")


def test_a_bag_is_fetched_each_file_once(tmp_path: Path, files: Files, published: Any) -> None:
    published("several", 4, 5, 4, weights=None)
    card = fetch.fetch("several")
    assert isinstance(card, BagCard)
    assert [member.weights for member in card.members] == [(2.0,) * 4, (1.0,) * 4]
    assert len(files.asked) == 2
    assert "several" in {found.name for found in registry.list_models()}
    assert len(registry.load("several").members) == 2


def test_an_interrupted_model_goes_on(tmp_path: Path, files: Files, published: Any) -> None:
    model = published("several", 4, 5)

    def stop(phase: str, done_bytes: int, total_bytes: int | None) -> None:
        if phase == "net5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("several", stop)
    assert registry.best_installed() == registry.DEFAULT_MODEL
    fetch.fetch("several")
    assert [path for path, _ in files.asked].count(f"/folder/{model.files[0].name}") == 1
    assert "downloads" not in names(tmp_path / "users")


def test_what_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind, message in (
        ("mdx_q", ModelError, "diffq"),
        ("none", UnknownModel, "no public model 'none'"),
        ("../up", UnknownModel, "no public model"),
    ):
        with pytest.raises(kind, match=message):
            fetch.fetch(name)
    monkeypatch.setenv(catalogue.MIRRORS_VARIABLE, "file:///tmp")
    with pytest.raises(ModelError, match="not an http or https address"):
        fetch.fetch("htdemucs")


def test_a_file_that_is_no_checkpoint_is_not_installed(
    tmp_path: Path, files: Files, published: Any
) -> None:
    model = published("odd", 4)
    sha256_prefix = hashlib.sha256(b"hello").hexdigest()[:8]
    file = replace(model.files[0], sha256_prefix=sha256_prefix)
    catalogue.OFFICIAL_MODELS["odd"] = replace(model, files=(file,))
    files.contents[f"/folder/{file.name}"] = b"hello"
    with pytest.raises(ModelError, match="not a Demucs checkpoint"):
        fetch.fetch("odd")
    assert {path.suffix for path in (tmp_path / "users").rglob("*.*")} <= {".th", ".lock"}


FETCHING = """
import sys
from dataclasses import replace
from models import catalogue, download, fetch
download.BLOCK_BYTES = 10_000
signature, sha256_prefix, folder = sys.argv[1:4]
file = catalogue.OfficialFile(signature, sha256_prefix, folder)
catalogue.OFFICIAL_MODELS["simple"] = replace(
    catalogue.OFFICIAL_MODELS["htdemucs"], name="simple", files=(file,)
)
card = fetch.fetch("simple", note=lambda line: print(line, flush=True))
print(card.name, "is there")
"""


def fetching(model: catalogue.OfficialModel) -> subprocess.Popen[str]:
    (file,) = model.files
    arguments = [file.signature, file.sha256_prefix, file.folder]
    command = [sys.executable, "-P", "-c", FETCHING, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_at_once_fetch_once(tmp_path: Path, files: Files, published: Any) -> None:
    model = published("simple", 48)
    files.block_bytes, files.pause_seconds = 4096, 0.05  # long enough for the second to come
    processes = [fetching(model), fetching(model)]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert len(files.asked) == 1
    assert all(out.endswith("simple is there\n") for out, _ in told)
    assert sum("another program is fetching" in out for out, _ in told) == 1
    assert names(tmp_path / "users") == ["simple.json", "simple.safetensors"]
    assert store.is_whole(registry.find("simple"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is tested")
def test_killed_goes_on(tmp_path: Path, files: Files, published: Any) -> None:
    model = published("simple", 48)
    size_bytes = len(files.contents[f"/folder/{model.files[0].name}"])
    part = tmp_path / "users" / "downloads" / f"{model.files[0].name}.part"
    files.block_bytes, files.pause_seconds = 4096, 0.05
    process = fetching(model)
    wait_for(lambda: part.is_file() and part.stat().st_size >= 12_288)
    process.kill()
    process.communicate()
    kept_bytes = part.stat().st_size
    assert 0 < kept_bytes < size_bytes
    assert registry.best_installed() == registry.DEFAULT_MODEL
    files.pause_seconds = 0
    process = fetching(model)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert files.asked[-1][1] == f"bytes={kept_bytes}-"
    assert names(tmp_path / "users") == ["simple.json", "simple.safetensors"]
