"""The public Demucs models as data: what they are, and which files they are made of.

A file is known by its signature and by the start of its SHA-256, which is part of its name
(``SIGNATURE-SHA8.th``). Nothing here touches the network or the disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from models.errors import ModelError, UnknownModel

__all__ = [
    "MIRRORS_VARIABLE",
    "OFFICIAL_MODELS",
    "RANKING",
    "OfficialFile",
    "OfficialModel",
    "file_of",
    "mirrors",
    "model_of_file",
    "official_model",
]

MIRRORS_VARIABLE = "STEMBRIDGE_MIRRORS"
ORIGIN = "https://dl.fbaipublicfiles.com/demucs/"
LINK = "https://github.com/facebookresearch/demucs"
LICENCE = "MIT"
FOUR_STEMS = ("drums", "bass", "other", "vocals")

# Best first, for whoever leaves the choice to us: the order of the authors' own scores
# (https://github.com/facebookresearch/demucs, and the two papers' tables).
RANKING = (
    "htdemucs_ft",
    "htdemucs",
    "hdemucs_mmi",
    "mdx_extra",
    "mdx",
    "repro_mdx_a",
    "repro_mdx_a_hybrid_only",
    "repro_mdx_a_time_only",
    "stembridge-small",
)


@dataclass(frozen=True)
class OfficialFile:
    """One network's file."""

    signature: str
    sha256_prefix: str  # eight hexadecimal digits
    folder: str  # under a mirror's address, with the closing slash
    size_bytes: int | None = None  # about; None: not known

    @property
    def name(self) -> str:
        """The file's name, as it is published."""
        return f"{self.signature}-{self.sha256_prefix}.th"


@dataclass(frozen=True)
class OfficialModel:
    """A published model: a bag of one or several networks."""

    name: str
    files: tuple[OfficialFile, ...]  # one per member; a file may serve as several members
    weights: tuple[tuple[float, ...], ...] | None  # a row per member; None: all equal
    segment_seconds: float | None  # in place of the networks' own; None: each its own
    stems: tuple[str, ...]
    description: str
    trained_on: str
    refused: str | None = None  # why it cannot be used, and what to take instead
    licence: str = LICENCE  # of code and weights, as their authors published them
    link: str = LINK

    @property
    def distinct_files(self) -> tuple[OfficialFile, ...]:
        """What has to be fetched, each file once."""
        return tuple(dict.fromkeys(self.files))

    @property
    def size_bytes(self) -> int | None:
        """About how much has to be fetched; None where a part is not known."""
        total = 0
        for file in self.distinct_files:
            if file.size_bytes is None:
                return None
            total += file.size_bytes
        return total


_MUSDB = "MUSDB18-HQ"
_MUSDB_800 = "MUSDB18-HQ and 800 further songs"
_MUSDB_EXTRA = "MUSDB18-HQ with its test songs, and further songs"
_HYBRID_BYTES = 167_000_000  # 83.6 M parameters in half precision
_TRANSFORMER_BYTES = 84_000_000  # 42.0 M
_SIX_STEMS_BYTES = 55_000_000  # 27.4 M


def _files(folder: str, size_bytes: int | None, names: str) -> tuple[OfficialFile, ...]:
    parts = (name.partition("-") for name in names.split())
    return tuple(
        OfficialFile(signature, sha256_prefix, folder, size_bytes)
        for signature, _, sha256_prefix in parts
    )


_MDX, _TRANSFORMER = "mdx_final/", "hybrid_transformer/"
# The waveform networks' sizes are not known to us.
_REPRO_WAVEFORM = _files(_MDX, None, "9a6b4851-03af0aa6 1ef250f1-592467ce")
_REPRO_HYBRID = _files(_MDX, _HYBRID_BYTES, "fa0cb7f9-100d8bf4 902315c2-b39ce9c9")
# Each member is good at what it has a weight for; the columns are drums, bass, other, vocals.
_MDX_WEIGHTS = (
    (1.0, 1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (1.0, 0.0, 1.0, 1.0),
    (1.0, 0.0, 1.0, 1.0),
)
_ONE_STEM_EACH = (
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
)
_QUANTIZED = (
    "its files are packed by diffq, whose licence (CC BY-NC) does not go with this program's;"
    " take {instead}, the same model unpacked"
)

_ALL = (
    OfficialModel(
        name="htdemucs",
        files=_files(_TRANSFORMER, _TRANSFORMER_BYTES, "955717e8-8726e21a"),
        weights=None,
        segment_seconds=None,
        stems=FOUR_STEMS,
        description="Hybrid Transformer Demucs (version 4): the usual choice",
        trained_on=_MUSDB_800,
    ),
    OfficialModel(
        name="htdemucs_ft",
        files=_files(
            _TRANSFORMER,
            _TRANSFORMER_BYTES,
            "f7e0c4bc-ba3fe64a d12395a8-e57c48e6 92cfc3b6-ef3bcb9c 04573f0d-f3cf25b2",
        ),
        weights=_ONE_STEM_EACH,
        segment_seconds=None,
        stems=FOUR_STEMS,
        description="htdemucs fine-tuned for each stem: a little better, four times the work",
        trained_on=_MUSDB_800,
    ),
    OfficialModel(
        name="htdemucs_6s",
        files=_files(_TRANSFORMER, _SIX_STEMS_BYTES, "5c90dfd2-34c22ccb"),
        weights=None,
        segment_seconds=None,
        stems=(*FOUR_STEMS, "guitar", "piano"),
        description="htdemucs with guitar and piano; its piano is weak",
        trained_on=_MUSDB_800,
    ),
    OfficialModel(
        name="hdemucs_mmi",
        files=_files(_TRANSFORMER, _HYBRID_BYTES, "75fc33f5-1941ce65"),
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="Hybrid Demucs (version 3), trained again on more songs",
        trained_on=_MUSDB_800,
    ),
    OfficialModel(
        name="mdx",
        # A bag of waveform and hybrid networks; the sizes of the former are not known to us.
        files=_files(
            _MDX, None, "0d19c1c6-0f06f20e 7ecf8ec1-70f50cc9 c511e2ab-fe698775 7d865c68-3d5dd56b"
        ),
        weights=_MDX_WEIGHTS,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="first of track A of the Music Demixing Challenge 2021",
        trained_on=_MUSDB,
    ),
    OfficialModel(
        name="mdx_extra",
        files=_files(
            _MDX,
            _HYBRID_BYTES,
            "e51eebcc-c1b80bdd a1d90b5c-ae9d2452 5d2d6c55-db83574e cfa93e08-61801ae1",
        ),
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="second of track B of the Music Demixing Challenge 2021",
        trained_on=_MUSDB_EXTRA,
    ),
    OfficialModel(
        name="mdx_q",
        files=_files(
            _MDX, None, "6b9c2ca1-3fd82607 b72baf4e-8778635e 42e558d4-196e0e1b 305bc58f-18378783"
        ),
        weights=_MDX_WEIGHTS,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="mdx, packed",
        trained_on=_MUSDB,
        refused=_QUANTIZED.format(instead="mdx"),
    ),
    OfficialModel(
        name="mdx_extra_q",
        files=_files(
            _MDX, None, "83fc094f-4a16d450 464b36d7-e5a9386e 14fc6a69-a89dd0ee 7fd6ef75-a905dd85"
        ),
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="mdx_extra, packed",
        trained_on=_MUSDB_EXTRA,
        refused=_QUANTIZED.format(instead="mdx_extra"),
    ),
    OfficialModel(
        name="repro_mdx_a",
        files=(*_REPRO_WAVEFORM, *_REPRO_HYBRID),
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="track A of the challenge again, waveform and hybrid networks",
        trained_on=_MUSDB,
    ),
    OfficialModel(
        name="repro_mdx_a_hybrid_only",
        files=_REPRO_HYBRID * 2,
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="the hybrid networks of repro_mdx_a",
        trained_on=_MUSDB,
    ),
    OfficialModel(
        name="repro_mdx_a_time_only",
        files=tuple(file for file in _REPRO_WAVEFORM for _ in range(2)),
        weights=None,
        segment_seconds=44.0,
        stems=FOUR_STEMS,
        description="the waveform networks of repro_mdx_a",
        trained_on=_MUSDB,
    ),
)
OFFICIAL_MODELS: dict[str, OfficialModel] = {model.name: model for model in _ALL}


def official_model(name: str) -> OfficialModel:
    """Find a public model that can be used.

    Raises
    ------
    UnknownModel
        There is none of that name; the message lists those there are.
    ModelError
        It is known, and cannot be used; the message says why and what to take instead.
    """
    if name not in OFFICIAL_MODELS:
        known = ", ".join(model.name for model in OFFICIAL_MODELS.values() if model.refused is None)
        raise UnknownModel(
            f"there is no public model {name!r} to fetch; there are: {known}; a file of your own"
            " comes in by 'stembridge models import FILE'"
        )
    model = OFFICIAL_MODELS[name]
    if model.refused is not None:
        raise ModelError(f"{name} cannot be used: {model.refused}")
    return model


def file_of(sha256: str) -> OfficialFile | None:
    """Find the published file that has this SHA-256, as far as its published start tells."""
    for model in OFFICIAL_MODELS.values():
        for file in model.files:
            if sha256.startswith(file.sha256_prefix):
                return file
    return None


def model_of_file(file: OfficialFile) -> OfficialModel:
    """Find a model that a file belongs to; one that it is all of, where there is such."""
    owners = [model for model in OFFICIAL_MODELS.values() if file in model.files]
    return min(owners, key=lambda model: len(model.files))


def mirrors() -> tuple[str, ...]:
    """List the addresses that hold the published folders, to be tried in this order.

    Those of the environment variable ``STEMBRIDGE_MIRRORS`` (separated by spaces or commas) come
    before the authors' own. Each ends in a slash.

    Raises
    ------
    ModelError
        An address of the variable is not one of http or https.
    """
    addresses = []
    for text in os.environ.get(MIRRORS_VARIABLE, "").replace(",", " ").split():
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port  # raises for what is no number
        except ValueError:
            usable = False
        if not usable:
            raise ModelError(
                f"{MIRRORS_VARIABLE} names {text!r}, which is not an http or https address;"
                " correct it and run again"
            )
        addresses.append(text.rstrip("/") + "/")
    return (*addresses, ORIGIN)
