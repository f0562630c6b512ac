"""What we say of the public models, held against the reference package; and the mirrors."""

from __future__ import annotations

from pathlib import Path

import demucs
import pytest
import yaml

from models import catalogue, registry
from models.adopt import adopt_known
from models.errors import ModelError, UnknownModel

REMOTE = Path(demucs.__file__).parent / "remote"


def test_bags() -> None:
    told = {path.stem: yaml.safe_load(path.read_text()) for path in REMOTE.glob("*.yaml")}
    assert told.keys() == catalogue.OFFICIAL_MODELS.keys()
    for name, bag in told.items():
        model = catalogue.OFFICIAL_MODELS[name]
        assert [file.signature for file in model.files] == bag["models"]
        rows = None if model.weights is None else [list(row) for row in model.weights]
        assert rows == bag.get("weights")
        assert model.segment_seconds == bag.get("segment")


def test_files() -> None:
    folder, told = "", set()
    for line in (REMOTE / "files.txt").read_text().splitlines():
        if line.startswith("root:"):
            folder = line.removeprefix("root:").strip()
        elif line and not line.startswith("#"):
            told.add(folder + line)
    known = {
        file.folder + file.name
        for model in catalogue.OFFICIAL_MODELS.values()
        for file in model.files
    }
    assert known == told


def test_quantized_models_are_refused_with_what_to_take() -> None:
    for name in ("mdx_q", "mdx_extra_q"):
        with pytest.raises(ModelError, match=f"take {name.removesuffix('_q')}, the same"):
            catalogue.official_model(name)
    with pytest.raises(UnknownModel, match="there are: htdemucs, htdemucs_ft"):
        catalogue.official_model("spleeter")


def test_the_ranking_names_models_that_there_are() -> None:
    usable = {m.name for m in catalogue.OFFICIAL_MODELS.values() if m.refused is None}
    assert set(catalogue.RANKING) == usable - {"htdemucs_6s"} | {registry.DEFAULT_MODEL}


def test_repeated_networks_are_fetched_and_run_once(tmp_path: Path) -> None:
    model = catalogue.official_model("repro_mdx_a_time_only")
    assert len(model.files) == 4
    assert len(model.distinct_files) == 2
    members = adopt_known(model, tmp_path).members
    assert [(member.weights, member.times) for member in members] == [(None, 2)] * 2


def test_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalogue.MIRRORS_VARIABLE, raising=False)
    assert catalogue.mirrors() == (catalogue.ORIGIN,)
    monkeypatch.setenv(catalogue.MIRRORS_VARIABLE, " http://a/b, https://c:8080/d/ http://e")
    assert catalogue.mirrors() == (
        "http://a/b/",
        "https://c:8080/d/",
        "http://e/",
        catalogue.ORIGIN,
    )


@pytest.mark.parametrize(
    "text", ["file:///tmp/x", "ftp://a/", "/tmp/x", "http://", "http://a:b/", "https://[x/"]
)
def test_other_mirrors_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.MIRRORS_VARIABLE, text)
    with pytest.raises(ModelError, match="not an http or https address"):
        catalogue.mirrors()
