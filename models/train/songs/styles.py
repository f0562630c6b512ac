"""What distinguishes the styles, as data.

Patterns have sixteen steps to a bar. Drums: ``x`` stroke, ``X`` accent, ``g`` ghost. Bass: ``R``
root, ``3`` third, ``5`` fifth, ``8`` octave, ``a`` approach to the next chord. Comping: ``c``
chord, ``s`` short chord, ``l`` low root; arpeggios: a chord tone's index. ``-`` holds,
``.`` is silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Groove = Mapping[str, str]


@dataclass(frozen=True)
class PartRecipe:
    """An accompanying instrument: how it plays and on which sounds."""

    manner: str  # comp, strum, pad, arp, power, lead
    families: tuple[str, ...]
    patterns: tuple[str, ...] = ("c---------------",)


@dataclass(frozen=True)
class Style:
    """Tempo, feel, grooves and instruments of a style."""

    name: str
    tempo_bpm: tuple[float, float]
    swing: tuple[float, float]  # share of a sixteenth by which each second one is late
    modes: tuple[str, ...]
    sevenths: float  # probability
    acoustic_kit: float  # probability
    grooves: tuple[Groove, ...]
    percussion: tuple[Groove, ...]
    bass_families: tuple[str, ...]
    bass_patterns: tuple[str, ...]
    parts: tuple[PartRecipe, ...]
    vocal_rhythms: tuple[str, ...]
    rap: float = 0.0  # probability of spoken-like verses
    timing_seconds: float = 0.006


# General MIDI programs by family; choirs are left out, they would blur what a voice is.
PROGRAMS: Mapping[str, tuple[int, ...]] = {
    "piano": (0, 1, 2, 3),
    "electric_piano": (4, 5),
    "organ": (16, 17, 18, 19),
    "accordion": (21, 22),
    "mallets": (8, 9, 11, 12, 13),
    "acoustic_guitar": (24, 25),
    "clean_guitar": (26, 27, 28),
    "rock_guitar": (29, 30),
    "strings": (48, 49, 50, 51),
    "solo_strings": (40, 41, 42),
    "harp": (45, 46),
    "brass": (61, 62, 63),
    "trumpet": (56, 57, 59),
    "sax": (64, 65, 66, 67),
    "flute": (71, 73, 75),
    "synth_lead": (80, 81, 84, 87),
    "synth_pad": (88, 89, 90, 92, 94, 95),
    "finger_bass": (33, 35),
    "pick_bass": (34,),
    "acoustic_bass": (32,),
    "slap_bass": (36, 37),
    "synth_bass": (38, 39),
}

# What plays instead where the font at hand has no program of a family.
STAND_INS: Mapping[str, str] = {
    "electric_piano": "subtractive_pluck",
    "organ": "subtractive_pad",
    "accordion": "subtractive_lead",
    "mallets": "subtractive_pluck",
    "acoustic_guitar": "plucked_guitar",
    "clean_guitar": "plucked_guitar",
    "rock_guitar": "driven_lead",
    "harp": "plucked_guitar",
    "solo_strings": "subtractive_lead",
    "sax": "subtractive_lead",
    "flute": "subtractive_lead",
    "finger_bass": "plucked_bass",
    "pick_bass": "plucked_bass",
    "acoustic_bass": "plucked_bass",
    "slap_bass": "plucked_bass",
}

_SUNG = (
    "x-.x-.x---x-x---",
    "x---x-x-x---....",
    "..x-x-x-x---x---",
    "x--x--x-x-------",
    "x-x-x-x-x---x-x-",
    "x-------x---x-x-",
    "....x-x-x-x-x---",
)
_SLOW = (
    "x-----x-x-------",
    "x-------x-------",
    "..x-x---x-------",
    "x---x---x---x---",
    "x-----------x-x-",
)
_DENSE = ("x-xxx-x-xxx-x-x-", "xxx-xxx-x-xxx---", "x-x-xxx-x-x-xxx-", "..xxx-xxx-x-x---")

_PAD = PartRecipe("pad", ("strings", "synth_pad", "organ", "subtractive_pad"))
_LEAD = PartRecipe(
    "lead",
    ("sax", "trumpet", "flute", "solo_strings", "synth_lead", "clean_guitar", "subtractive_lead"),
)
_ARP = PartRecipe(
    "arp",
    ("harp", "electric_piano", "mallets", "subtractive_pluck", "acoustic_guitar", "clean_guitar"),
    ("0.1.2.3.2.1.2.1.", "0-1-2-1-0-1-2-1-", "0.2.1.3.0.2.1.3.", "0121012101210121"),
)
_PIANO = PartRecipe(
    "comp",
    ("piano", "electric_piano", "piano"),
    (
        "l---c---c---c---",
        "c-----c---c-----",
        "lc--c-c-l---c-c-",
        "c-------c-c-----",
        "c---c---c---c---",
    ),
)
_STRUM = PartRecipe(
    "strum",
    ("acoustic_guitar", "clean_guitar", "plucked_guitar"),
    ("c---c-c---c-c-c-", "c---c---c-c-c-c-", "c-c-c-c-c-c-c-c-", "c---cc-c--c-cc-c"),
)
_STABS = PartRecipe(
    "comp",
    ("brass", "strings", "subtractive_pluck"),
    ("....s.......s...", "s.....s.........", "..........s..s..", "s..s..s........."),
)
_POWER = PartRecipe(
    "power",
    ("driven_guitar",),
    (
        "c-c-c-c-c-c-c-c-",
        "c-----c---c-c---",
        "c---------------",
        "c--c--c-c--c--c-",
        "sscssscssscsssc-",
    ),
)

STYLES: tuple[Style, ...] = (
    Style(
        "rock",
        (95, 168),
        (0.0, 0.05),
        ("major", "minor", "mixolydian", "dorian"),
        0.05,
        0.97,
        (
            {
                "kick": "X.......X.x.....",
                "snare": "....X.......X...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X..x....X..x..x.",
                "snare": "....X.......X..g",
                "hat_closed": "X.x.X.x.X.x.X.x.",
            },
            {"kick": "X.....x.X.......", "snare": "....X.......X...", "ride": "X.x.X.x.X.x.X.x."},
            {
                "kick": "X.x.....X.x.....",
                "snare": "....X.......X...",
                "hat_open": "x...x...x...x...",
            },
            {
                "kick": "X...X...X...X...",
                "snare": "..X...X...X...X.",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {"kick": "X.......x.......", "snare": "........X.......", "crash": "x...x...x...x..."},
        ),
        ({}, {}, {"tambourine": "..x...x...x...x."}),
        ("pick_bass", "finger_bass", "plucked_bass"),
        (
            "R-R-R-R-R-R-R-R-",
            "R-----R-R-----a-",
            "R---R---R-R-5-a-",
            "R--R--R-R--R--5-",
            "R-----------5-8-",
        ),
        (
            _POWER,
            _POWER,
            _STRUM,
            PartRecipe("lead", ("rock_guitar", "driven_lead")),
            _PIANO,
            PartRecipe("pad", ("organ", "strings")),
            _ARP,
        ),
        _SUNG,
    ),
    Style(
        "pop",
        (84, 132),
        (0.0, 0.12),
        ("major", "minor", "major"),
        0.2,
        0.55,
        (
            {
                "kick": "X...X...X...X...",
                "snare": "....X.......X...",
                "hat_closed": "..x...x...x...x.",
            },
            {
                "kick": "X.....x.X.......",
                "clap": "....X.......X...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X..x..x...x.....",
                "snare": "....X.......X...",
                "hat_closed": "xxxxxxxxxxxxxxxx",
            },
            {
                "kick": "X.......X.x...x.",
                "snare": "....X.......X...",
                "hat_closed": "x.x.x.x.x.x.x.xx",
            },
        ),
        (
            {},
            {"shaker": "xgxgxgxgxgxgxgxg"},
            {"tambourine": "....x.......x..."},
            {"clap": "....x.......x..."},
        ),
        ("finger_bass", "synth_bass", "subtractive_bass", "pick_bass"),
        (
            "R-R-R-R-R-R-R-R-",
            "R-----R-----R-5-",
            "R..R..R...R.R...",
            "..R...R...R...R.",
            "R---8---R---8-a-",
        ),
        (_PIANO, _PAD, _ARP, _STRUM, _STABS, _LEAD, _PAD, _POWER),
        _SUNG,
    ),
    Style(
        "electronic",
        (112, 140),
        (0.0, 0.1),
        ("minor", "minor", "dorian", "major"),
        0.25,
        0.05,
        (
            {
                "kick": "X...X...X...X...",
                "clap": "....X.......X...",
                "hat_open": "..x...x...x...x.",
            },
            {
                "kick": "X...X...X...X...",
                "snare": "....X.......X...",
                "hat_closed": "xxxxxxxxxxxxxxxx",
            },
            {
                "kick": "X.....X...X.....",
                "snare": "....X.......X...",
                "hat_closed": "x.xxx.x.x.xxx.x.",
            },
            {
                "kick": "X..X..X.X..X..X.",
                "clap": "....X.......X...",
                "hat_closed": "..x...x...x...x.",
            },
        ),
        (
            {},
            {"shaker": "..x...x...x...x."},
            {"conga_high": "..x..x....x..x..", "cowbell": "x..x..x....x...."},
        ),
        ("subtractive_bass", "subtractive_bass", "synth_bass"),
        (
            "..R...R...R...R.",
            "R.RR.RR.R.RR.RR.",
            "R-R-8-R-R-R-8-R-",
            "R-----R-----R---",
            "RRRRRRRRRRRRRRRR",
        ),
        (
            PartRecipe(
                "comp",
                ("subtractive_pluck", "subtractive_lead"),
                ("s..s..s...s..s..", "..s...s...s...s.", "s...s.s...s.s...", "s..s..s.s..s..s."),
            ),
            _ARP,
            PartRecipe("pad", ("subtractive_pad", "synth_pad")),
            PartRecipe(
                "arp",
                ("subtractive_pluck",),
                ("0121012101210121", "0123210301232103", "0.12.01.2.01.21."),
            ),
            PartRecipe("lead", ("subtractive_lead", "synth_lead")),
            _STABS,
            _PIANO,
        ),
        _SUNG + _SLOW,
        timing_seconds=0.0015,
    ),
    Style(
        "ballad",
        (58, 88),
        (0.0, 0.2),
        ("major", "minor", "major"),
        0.35,
        0.9,
        (
            {
                "kick": "X.........x.....",
                "snare": "....x.......x...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X.....x.x.......",
                "stick": "....x.......x...",
                "hat_closed": "x...x...x...x...",
            },
            {"kick": "X.......x.x.....", "snare": "....X.......X...", "ride": "x.x.x.x.x.x.x.x."},
            {
                "kick": "X...............",
                "snare": "........X.......",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
        ),
        ({}, {}, {"shaker": "x.g.x.g.x.g.x.g."}),
        ("finger_bass", "acoustic_bass", "finger_bass", "plucked_bass"),
        ("R-------R-------", "R-----R-R---5---", "R-----------a---", "R---5---8---5---"),
        (
            _PIANO,
            _PIANO,
            PartRecipe("pad", ("strings", "strings", "organ", "synth_pad")),
            _ARP,
            _STRUM,
            _LEAD,
        ),
        _SLOW + _SUNG[:4],
        timing_seconds=0.009,
    ),
    Style(
        "latin",
        (88, 128),
        (0.0, 0.04),
        ("minor", "major", "harmonic minor", "dorian"),
        0.5,
        0.85,
        (
            {
                "kick": "X..x..x.X..x..x.",
                "stick": "x..x..x...x.x...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X...X...X...X...",
                "snare": "...x..x....x..x.",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {"kick": "......x.......x.", "stick": "..x.x...x..x..x.", "ride": "x.xxx.xxx.xxx.xx"},
        ),
        (
            {
                "conga_low": "......xx......xx",
                "conga_high": "x.g.x.g.x.g.x.g.",
                "shaker": "xgxgxgxgxgxgxgxg",
            },
            {"cowbell": "x.x.x.xxx.x.x.xx", "conga_high": "..x...xx..x...xx"},
            {"conga_high": "x..x..x.x..x..x.", "tambourine": "..x...x...x...x."},
        ),
        ("acoustic_bass", "finger_bass", "synth_bass"),
        ("R-----5-----8---", "......5-----R---", "R--R--5-R--R--5-", "R-----5-8-----5-"),
        (
            PartRecipe("comp", ("piano",), ("c.cc.c.cc.cc.c.c", "c..c..c.c..c..c.")),
            PartRecipe("strum", ("acoustic_guitar",), ("c..c..c.c..c..c.", "c-c-ccc-c-c-ccc-")),
            _STABS,
            PartRecipe("lead", ("trumpet", "flute", "accordion")),
            _PAD,
            _ARP,
            PartRecipe("comp", ("accordion", "mallets"), ("..c...c...c...c.", "c-----c-----c---")),
        ),
        _SUNG,
    ),
    Style(
        "hip-hop",
        (72, 104),
        (0.05, 0.32),
        ("minor", "dorian", "minor"),
        0.5,
        0.3,
        (
            {
                "kick": "X.....x...x.....",
                "snare": "....X.......X...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X..x......xx....",
                "snare": "....X.......X..g",
                "hat_closed": "x.x.x.xxx.x.x.x.",
            },
            {
                "kick": "X......x..x.....",
                "clap": "....X.......X...",
                "hat_closed": "x.xxx.x.xxx.x.xx",
            },
            {
                "kick": "X.x.......x..x..",
                "snare": "........X.......",
                "hat_closed": "xxxxxxxxxxxxxxxx",
            },
        ),
        ({}, {"shaker": "..x...x...x...x."}, {"stick": ".......x......x."}),
        ("subtractive_bass", "sub_bass", "sub_bass", "finger_bass"),
        ("R-----R---R-----", "R---------R-a---", "R------R--R-----", "R-----8-R---5---"),
        (
            PartRecipe(
                "comp",
                ("electric_piano", "piano", "mallets"),
                ("c-------c---c---", "c---------------", "c--c----c-------", "s...s...s...s..."),
            ),
            _ARP,
            PartRecipe("pad", ("strings", "subtractive_pad", "synth_pad")),
            _STABS,
            _LEAD,
        ),
        _DENSE + _SUNG[:3],
        rap=0.65,
        timing_seconds=0.005,
    ),
    Style(
        "reggae",
        (68, 96),
        (0.0, 0.25),
        ("major", "minor", "mixolydian"),
        0.25,
        0.9,
        (
            {
                "kick": "........X.......",
                "stick": "........x.......",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X...X...X...X...",
                "snare": "........X.......",
                "hat_closed": "..x...x...x...x.",
            },
            {
                "kick": "X.......X.......",
                "snare": "........X.....g.",
                "hat_closed": "xgx.xgx.xgx.xgx.",
            },
        ),
        ({}, {"conga_high": "..x...xx..x...x."}, {"shaker": "x.x.x.x.x.x.x.x."}),
        ("finger_bass", "finger_bass", "sub_bass"),
        ("R-R-..3-5-....R-", "..R-R-..5-8-....", "R---....R-3-5---", "R-..R-..5-..3-a-"),
        (
            PartRecipe("comp", ("clean_guitar", "piano"), ("....s.......s...", "....s.s.....s.s.")),
            PartRecipe("comp", ("organ",), ("..s.s.s...s.s.s.", "..s...s...s...s.")),
            _LEAD,
            _PAD,
            _STABS,
        ),
        _SUNG,
    ),
    Style(
        "country",
        (88, 150),
        (0.0, 0.3),
        ("major", "mixolydian", "major"),
        0.1,
        1.0,
        (
            {
                "kick": "X.......X.......",
                "snare": "....x.......x...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X...X...X...X...",
                "snare": "..x...x...x...x.",
                "hat_pedal": "..x...x...x...x.",
            },
            {
                "kick": "X.......X.x.....",
                "stick": "....x.......x...",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
        ),
        ({}, {"tambourine": "....x.......x..."}, {"shaker": "xgxgxgxgxgxgxgxg"}),
        ("finger_bass", "acoustic_bass", "pick_bass", "plucked_bass"),
        ("R-------5-------", "R---5---R---5---", "R-----R-5---a---", "R---R---5---5-a-"),
        (
            _STRUM,
            _STRUM,
            PartRecipe("lead", ("solo_strings", "clean_guitar", "accordion")),
            _PIANO,
            _ARP,
            PartRecipe("pad", ("organ", "strings")),
        ),
        _SUNG,
    ),
    Style(
        "funk",
        (92, 122),
        (0.0, 0.18),
        ("dorian", "mixolydian", "minor"),
        0.9,
        0.9,
        (
            {
                "kick": "X.x...x...x..x..",
                "snare": "....X..g.g..X..g",
                "hat_closed": "x.x.x.x.x.x.x.x.",
            },
            {
                "kick": "X..x..x.X..x....",
                "snare": "....X.g..g.gX...",
                "hat_closed": "xxxxxxxxxxxxxxxx",
            },
            {
                "kick": "X.......x.x...x.",
                "snare": "....X..g....X.g.",
                "hat_closed": "x.x.x.xxx.x.x.x.",
            },
        ),
        (
            {},
            {"conga_high": "x.gx..x.x.gx..x.", "cowbell": "x...x...x...x..."},
            {"tambourine": "x.xxx.xxx.xxx.xx"},
        ),
        ("slap_bass", "finger_bass", "subtractive_bass"),
        ("R..R..8...R.a...", "R.R...8.R..R.8..", "R--R.8.RR..R..5.", "R.....8.R.R.8.a."),
        (
            PartRecipe(
                "strum",
                ("clean_guitar",),
                ("s.s.ss.s..s.ss.s", "..s.s..s..s.s..s", "ssssss.s..ssss.s"),
            ),
            PartRecipe(
                "comp", ("electric_piano", "organ"), ("s..s..s...s..s..", "c---..s...s.....")
            ),
            _STABS,
            _LEAD,
            _PAD,
        ),
        _SUNG + _DENSE[:2],
    ),
)


def style_named(name: str) -> Style:
    """Find a style; KeyError if there is none of that name."""
    for style in STYLES:
        if style.name == name:
            return style
    raise KeyError(name)
