"""The command line: quick to start, one line for an error, JSON for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CommandResult

Command = Callable[..., CommandResult]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "code",
    [
        "import bridge",
        "import models",
        "import bridge.sessions",
        "import bridge.audio.source",
        "import models.registry; models.registry.list_models()",
        "from bridge.cli.parser import build_parser; build_parser().format_help()",
    ],
)
def test_torch_is_not_loaded_before_it_is_needed(code: str) -> None:
    check = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", check], check=True)


@pytest.mark.parametrize("code", ["import bridge", "from bridge.cli import main"])
def test_help_does_not_even_load_numpy(code: str) -> None:
    check = f"import sys; {code}; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", check], check=True)


def test_a_users_own_models_folder_is_not_picked_up(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bridge.cli", "models", "list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["default"] == "stembridge-small"


def test_models_list(stembridge: Command) -> None:
    done = stembridge("models", "list", "--json")
    assert done.returncode == 0
    models = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    assert models["stembridge-small"]["stems"] == ["drums", "bass", "other", "vocals"]
    assert "stembridge-small" in stembridge("models", "list").stdout


def test_doctor_finds_what_is_here(stembridge: Command) -> None:
    done = stembridge("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["torch"]["state"] == "ok"
    assert findings["pedalboard"]["state"] == "ok"
    assert findings["model"]["detail"].startswith("stembridge-small")
    assert "missing" not in {finding["state"] for finding in findings.values()}


def test_doctor_says_what_is_missing(stembridge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.cli.doctor.DEFAULT_MODEL", "no-such-model")
    done = stembridge("doctor")
    assert done.returncode == 1
    assert "no-such-model" in done.stdout
    assert done.stderr.strip() == ("stembridge: missing: model; see the table for how to get them")


@pytest.mark.parametrize("arguments", [(), ("separate",), ("dance",), ("render", "x")])
def test_misuse_exits_2(stembridge: Command, arguments: tuple[str, ...]) -> None:
    done = stembridge(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_no_room_expected_is_one_line_too(
    stembridge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise OSError(5, "Input/output error", "/media/disk")

    monkeypatch.setattr("bridge.cli.models.list_models", gone)
    done = stembridge("models", "list")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "stembridge: /media/disk: Input/output error; check it and run again"
    )


def test_a_broken_pipe_is_quiet() -> None:
    command = f"'{sys.executable}' -P -m bridge.cli models list | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_the_wheel_holds_the_packages_and_the_model(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("stembridge-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "bridge/cli/__init__.py" in names
    assert "models/weights/stembridge-small.safetensors" in names
    assert "models/weights/stembridge-small.json" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "bridge",
        "models",
        "stembridge",
    }
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import bridge, models.registry; "
        "assert bridge.__file__.startswith(sys.path[0]), bridge.__file__"
    )
    subprocess.run([sys.executable, "-P", "-S", "-c", code], check=True)
