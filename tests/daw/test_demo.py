"""``make demo``, with the shipped model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import soundfile

from bridge import sessions

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
STEMS = ("drums", "bass", "other", "vocals")


def test_the_demo_does_the_main_job(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(DEMO)],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = tmp_path / "demo-output"

    # The model hears the stems: each is closer to the true one than the mixture is, by far.
    scores = {}
    for stem in STEMS:
        line = next(line for line in done.stdout.splitlines() if f"Mix – {stem}" in line)
        score, of_the_mixture = map(float, re.findall(r"(-?[\d.]+) dB ", line))
        scores[stem] = score - of_the_mixture
    assert all(gain_db > 3 for gain_db in scores.values()), scores

    null = re.search(r"sum to the clip within (-\d+) dBFS", done.stdout)
    assert null is not None
    assert int(null[1]) < -120
    assert (output / "stems.png").stat().st_size > 50_000
    session = sessions.read(output / "session")
    for stem in (*STEMS, "residual"):
        (clip,) = session.track(f"Mix – {stem}").clips
        assert soundfile.info(clip.sources[0].path).frames == clip.length_frames

    if shutil.which("ardour7-export"):
        error = re.search(r"differs from the original's by at most (\S+)", done.stdout)
        assert error is not None, done.stdout
        assert float(error[1]) <= 2e-6
    else:
        assert os.environ.get("STEMBRIDGE_REQUIRE_DAW") != "1"
