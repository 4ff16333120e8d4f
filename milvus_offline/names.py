"""Names that every file system accepts, and text that is safe to show."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_TURNING = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Characters that turn the writing around: a name must look like what it is."""
_DISLIKED = frozenset('"*/:<>?\\|%~').union(map(chr, (*range(0x20), *range(0x7F, 0xA0), *_TURNING)))
_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", *(device + n for device in ("COM", "LPT") for n in "0123456789¹²³")))
_MAX_NAME = 180
"""Bytes, so that a suffix such as `.h5.part` still fits the usual limit of 255."""


def file_name(name: str) -> str:
    """A name for `name` that Linux, macOS and Windows accept: what they dislike is percent-encoded (UTF-8 bytes).

    Long names are cut and end in `~` and a digest. Two names can still differ by case or normalisation only, see `file_names`.
    """
    encoded = "".join(_percent(c) if c in _DISLIKED or "\ud800" <= c <= "\udfff" else c for c in name)
    if not encoded:
        return "%"
    if encoded[0] in ". " or encoded.partition(".")[0].upper() in _DEVICES:
        encoded = _percent(encoded[0]) + encoded[1:]
    if encoded[-1] in ". ":
        encoded = encoded[:-1] + _percent(encoded[-1])
    raw = encoded.encode()
    if len(raw) > _MAX_NAME:
        import hashlib

        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        encoded = raw[: _MAX_NAME - 17].decode("utf-8", "ignore") + "~" + digest
    return encoded


def _percent(character: str) -> str:
    return "".join(f"%{b:02X}" for b in character.encode("utf-8", "surrogateescape"))


def file_names(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """One file name for each of `names`, different also where case or normalisation do not count, and none `reserved`."""
    result: dict[str, str] = {}
    taken = set(reserved)
    for name in names:
        if name in result:
            continue
        plain = candidate = file_name(name)
        number = 1
        while (key := unicodedata.normalize("NFC", candidate).casefold()) in taken:
            number += 1
            candidate = f"{plain}~{number}"
        taken.add(key)
        result[name] = candidate
    return result


def without_password(text: str) -> str:
    """`text` with `***` in place of the password in each address `scheme://user:password@host` (of any number of slashes).

    A password that holds a blank or a slash is hidden up to there; the rest of it cannot be told from what follows.
    """
    return re.sub(r"(?i)\b([a-z][\w+.-]*:/{0,3}[^\s:/@]*):[^\s/]+@", r"\1:***@", text)


def printable(text: object) -> str:
    """`text` for a terminal: control characters (a hostile tag may hold them) and lone surrogates are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
