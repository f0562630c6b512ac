"""File names that every system takes."""

from __future__ import annotations

import re
import unicodedata

# Ext4, APFS and NTFS take 255 bytes or characters; room is left for suffixes of temporary files.
_LONGEST_BYTES = 200
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]')
# What Windows keeps for devices, with or without an extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_file_name(name: str, suffix: str = "") -> str:
    """Return ``name + suffix`` as one file name that Linux, macOS and Windows all take.

    Path separators, control characters and what Windows forbids become ``_``; the text is put
    in composed form (NFC) and cut to 200 bytes of UTF-8, never inside a character; the suffix is
    kept whole. Names that Windows reserves get a leading ``_``; nothing at all becomes
    ``untitled``.
    """
    # Lone surrogates stand for bytes of a file name that were no UTF-8.
    text = name.encode("utf-8", "replace").decode("utf-8")
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    text = _FORBIDDEN.sub("_", text).strip().lstrip(".")
    room_bytes = _LONGEST_BYTES - len(suffix.encode())
    text = text.encode()[:room_bytes].decode("utf-8", "ignore")
    whole = (text.rstrip(" .") or "untitled") + suffix
    return f"_{whole}" if _RESERVED.fullmatch(whole) else whole
