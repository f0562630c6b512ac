"""Every sound font, drum kit and voice the songs use, with licence and hold-out.

Assets marked ``held_out`` never sound in the splits ``train`` and ``valid``; the split ``unseen``
uses nothing else. Kits or voices recorded from the same drums or the same person stay on one side.
Several packages share recordings: GMRockKit is The Black Pearl 1.0, both AVL kits have the same
cymbals, and MuseScore_General is Fluid R3 but for the programs listed as its own (its drums are
Fluid's throughout, so they are no kit here). ``shippable`` marks the assets whose renders may be
distributed with attribution.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "valid", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "valid", "unseen")
HELD_OUT_STYLES = frozenset({"funk"})

SOUND_FOLDER = Path("/usr/share/sounds")
HYDROGEN_FOLDER = Path("/usr/share/hydrogen/data/drumkits")
FESTIVAL_FOLDER = Path("/usr/share/festival/voices")


class AssetsMissing(Exception):
    """Instruments are not installed; the message is one line that names the apt packages."""


class Asset(Protocol):
    """What the choice of assets needs to know about each."""

    @property
    def name(self) -> str:
        """As song.json has it."""
        ...

    @property
    def package(self) -> str:
        """The apt package that brings it."""
        ...

    @property
    def held_out(self) -> bool:
        """Whether training never hears it."""
        ...

    @property
    def shippable(self) -> bool:
        """Whether renders may be distributed."""
        ...

    def installed(self) -> bool:
        """Tell whether the files are there."""
        ...


@dataclass(frozen=True)
class Font:
    """A General MIDI sound font. `own_programs` limits it to the programs no other font shares."""

    name: str
    path: Path
    package: str
    licence: str
    attribution: str
    own_programs: frozenset[int] | None = None
    held_out: bool = False
    shippable: bool = False

    def installed(self) -> bool:
        """Tell whether the font's file is there."""
        return self.path.is_file()


KitEngine = Literal["hydrogen", "soundfont", "gm", "procedural"]


@dataclass(frozen=True)
class Kit:
    """A drum kit: Hydrogen samples, a sound font of its own, a font's GM drums, or synthesis."""

    name: str
    engine: KitEngine
    path: Path | None
    package: str
    licence: str
    attribution: str
    acoustic: bool
    held_out: bool = False
    shippable: bool = False

    def installed(self) -> bool:
        """Tell whether the kit's files are there (synthesis needs none)."""
        return self.path is None or self.path.exists()


VoiceEngine = Literal["flite", "festival", "espeak"]


@dataclass(frozen=True)
class Voice:
    """A speech-synthesis voice. `parameter` is what the engine calls it.

    `low` tells a voice with a man's range (about C3 to F4) from a woman's (about G3 to D5).
    """

    name: str
    engine: VoiceEngine
    parameter: str
    low: bool
    words: str
    package: str
    licence: str
    attribution: str
    path: Path | None = None
    held_out: bool = False
    shippable: bool = False

    def installed(self) -> bool:
        """Tell whether the engine and the voice are there."""
        program = {"flite": "flite", "festival": "festival", "espeak": "espeak-ng"}[self.engine]
        return shutil.which(program) is not None and (self.path is None or self.path.exists())


# Pianos, FM piano, synth bass, strings, trumpet, synth brass, leads and pads, according to the
# table of sample sources that comes with the font.
_MUSESCORE_OWN_PROGRAMS = frozenset(
    {0, 1, 3, 5, 38, 45, 48, 49, 50, 51, 56, 62, 63, 80, 81, 87, 88, 90, 92, 95}
)

FONTS = (
    Font("FluidR3_GM", SOUND_FOLDER / "sf2/FluidR3_GM.sf2", "fluid-soundfont-gm", "MIT",
         "Fluid R3 General MIDI sound font, Copyright (c) 2000-2002, 2008 Frank Wen",
         shippable=True),
    Font("TimGM6mb", SOUND_FOLDER / "sf2/TimGM6mb.sf2", "timgm6mb-soundfont", "GPL-2",
         "TimGM6mb sound font by Tim Brechbill"),
    Font("MuseScore_General", SOUND_FOLDER / "sf3/MuseScore_General_Full.sf3",
         "musescore-general-soundfont", "MIT",
         "MuseScore_General sound font, Copyright (c) 2018-2021 S. Christian Collins, with parts "
         "Copyright (c) 2000-2002, 2008 Frank Wen and 2014-2017 Michael Cowgill",
         own_programs=_MUSESCORE_OWN_PROGRAMS, held_out=True, shippable=True),
)  # fmt: skip


def _hydrogen(
    name: str, licence: str, author: str, acoustic: bool, *,
    package: str = "hydrogen-drumkits", held_out: bool = False, shippable: bool = False,
) -> Kit:  # fmt: skip
    return Kit(
        name, "hydrogen", HYDROGEN_FOLDER / name, package, licence,
        f"Hydrogen drum kit {name} by {author}", acoustic, held_out, shippable,
    )  # fmt: skip


def _gm_drums(font: Font) -> Kit:
    return Kit(
        f"{font.name} drums", "gm", font.path, font.package, font.licence, font.attribution,
        True, font.held_out, font.shippable,
    )  # fmt: skip


KITS = (
    *(_gm_drums(font) for font in FONTS if font.own_programs is None),
    Kit("procedural", "procedural", None, "", "part of this project", "", False, shippable=True),
    _hydrogen("Audiophob", "CC0", "Audiophob", True, shippable=True),
    _hydrogen("rumpf_kit_z01_h2", "CC-BY 3.0", "Emanuel Rumpf", False,
              held_out=True, shippable=True),
    _hydrogen("BJA_Pacific", "CC-BY-SA 3.0", "Luc Tunguay", True, held_out=True),
    _hydrogen("ColomboAcousticDrumkit", "GPL-2+", "Marcos Guglielmetti", True),
    _hydrogen("ElectricEmpireKit", "GPL-2+", "Artemiy Pavlov", False),
    _hydrogen("ForzeeStereo", "GPL-2", "Vladimir Sadovnikov and Alexander Belokurov", True),
    _hydrogen("GMRockKit", "GPL-2+", "Glen MacArthur and Sebastian Moors", True,
              package="hydrogen-data"),
    _hydrogen("HardElectro1", "GPL-2+", "Artemiy Pavlov", False),
    _hydrogen("Millo-Drums_v.1", "GPL-2", "Emiliano Grilli", True),
    _hydrogen("Millo_MultiLayered2", "GPL-2", "Emiliano Grilli", True),
    _hydrogen("Millo_MultiLayered3", "GPL-2", "Emiliano Grilli", True),
    _hydrogen("TR808EmulationKit", "GPL-2+", "ArtemioLabs", False, package="hydrogen-data"),
    _hydrogen("VariBreaks", "GPL-2+", "Artemiy Pavlov", False, held_out=True),
    Kit("AVL Black Pearl", "soundfont", SOUND_FOLDER / "sf2/Black_Pearl_4_LV2.sf2",
        "avldrums.lv2-soundfont", "CC-BY-SA 3.0", "AVL drum kits by Glen MacArthur", True),
    Kit("AVL Red Zeppelin", "soundfont", SOUND_FOLDER / "sf2/Red_Zeppelin_4_LV2.sf2",
        "avldrums.lv2-soundfont", "CC-BY-SA 3.0", "AVL drum kits by Glen MacArthur", True),
)  # fmt: skip


def _flite(name: str, low: bool, author: str, *, held_out: bool = False) -> Voice:
    return Voice(
        f"flite-{name}", "flite", name, low, "english", "flite", "BSD-like (Flite)",
        f"Flite voice {name}, {author}", held_out=held_out, shippable=True,
    )  # fmt: skip


def _festival(
    name: str, folder: str, low: bool, words: str, package: str, licence: str, *,
    held_out: bool = False,
) -> Voice:  # fmt: skip
    return Voice(
        f"festival-{name}", "festival", f"voice_{name}", low, words, package, licence,
        f"Festival voice {name}", FESTIVAL_FOLDER / folder, held_out,
    )  # fmt: skip


def _espeak(variant: str, low: bool, *, held_out: bool = False) -> Voice:
    return Voice(
        f"espeak-{variant}", "espeak", f"en-us+{variant}", low, "english", "espeak-ng", "GPL-3+",
        f"eSpeak NG, variant {variant}", held_out=held_out,
    )  # fmt: skip


_CMU = "Copyright (c) Carnegie Mellon University"
VOICES = (
    _flite("slt", False, _CMU),
    _flite("rms", True, _CMU, held_out=True),
    _flite("awb", True, _CMU),
    _flite("kal16", True, _CMU),
    _festival("cmu_us_slt_arctic_hts", "us/cmu_us_slt_arctic_hts", False, "english",
              "festvox-us-slt-hts", "MIT-like"),
    _festival("ked_diphone", "english/ked_diphone", True, "english", "festvox-kdlpc16k",
              "MIT-like"),
    _festival("lp_diphone", "italian/lp_diphone", False, "romance", "festvox-italp16k", "GPL-2+",
              held_out=True),
    _festival("czech_dita", "czech/czech_dita", False, "open", "festvox-czech-dita", "GPL-3+",
              held_out=True),
    _festival("suo_fi_lj_diphone", "finnish/suo_fi_lj_diphone", False, "open",
              "festvox-suopuhe-lj", "LGPL-2.1+"),
    _festival("upc_ca_ona_hts", "catalan/upc_ca_ona_hts", False, "romance", "festvox-ca-ona-hts",
              "LGPL-2.1"),
    _espeak("m1", True), _espeak("m3", True, held_out=True), _espeak("m4", True),
    _espeak("m7", True), _espeak("f1", False), _espeak("f2", False), _espeak("f3", False),
    _espeak("f4", False),
)  # fmt: skip

AnyAsset = TypeVar("AnyAsset", bound=Asset)


def allowed(assets: Sequence[AnyAsset], split: Split, shippable: bool) -> list[AnyAsset]:
    """Return the assets that a split may use.

    Parameters
    ----------
    assets
        `FONTS`, `KITS` or `VOICES`.
    split
        ``unseen`` gets only held-out assets, the others only assets that are not held out.
    shippable
        Keep only the assets whose renders may be distributed.
    """
    return [
        asset
        for asset in assets
        if asset.held_out == (split == "unseen") and (asset.shippable or not shippable)
    ]


def require(split: Split, shippable: bool) -> None:
    """Check that all assets of a split are installed.

    All, not some: the draw of instruments depends on the list, so a machine that lacks one would
    render other songs from the same seed.

    Raises
    ------
    AssetsMissing
        In one line, with the command that installs what is missing.
    """
    needed: list[Asset] = [
        *allowed(FONTS, split, shippable),
        *allowed(KITS, split, shippable),
        *allowed(VOICES, split, shippable),
    ]
    missing = [asset for asset in needed if not asset.installed()]
    packages = {asset.package for asset in missing}
    if any(isinstance(a, Voice) and a.engine == "festival" for a in missing):
        packages.add("festival")
    if packages:
        raise AssetsMissing(
            f"{len(missing)} instruments are missing (first: {missing[0].name}): "
            f"apt-get install {' '.join(sorted(packages))}"
        )


def named(name: str) -> Font | Kit | Voice:
    """Find an asset by its name in song.json; KeyError if there is none."""
    everything: tuple[Font | Kit | Voice, ...] = (*FONTS, *KITS, *VOICES)
    for asset in everything:
        if asset.name == name:
            return asset
    raise KeyError(name)


def attribution(used: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one line of credit and licence for each asset of a song.

    Parameters
    ----------
    used
        ``assets`` of song.json: names by kind.
    """
    credits = (named(name) for names in used.values() for name in names)
    lines = {f"{asset.attribution} ({asset.licence})" for asset in credits if asset.attribution}
    return sorted(lines)
