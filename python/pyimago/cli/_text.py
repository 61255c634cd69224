"""How sizes, names and failures are written for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pyimago import ImagoError, ImplicitOpenDeniedError, WrongSecretError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
SUFFIXES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
SIZES = 2**63
SIZE = re.compile(
    r"\s*\+?(?:0x(?P<hexadecimal>[0-9a-f]+)"
    r"|(?=\.?[0-9])(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[bkmgtpe]?))",
    re.ASCII | re.IGNORECASE,
)
GIVEN = "--object secret,id=ID,file=KEY; --image-opts ...,encrypt.key-secret=ID, of luks key-secret=ID"
"""How a secret is given."""


class UsageError(Exception):
    """An argument that argparse could not judge is wrong; its text is the message."""


def size(count: int) -> str:
    """`count` bytes with three significant digits, in the unit that keeps it below 1000."""
    unit, scaled = 0, float(count)
    while scaled >= 1000 and unit < len(UNITS) - 1:
        scaled /= 1024
        unit += 1
    return f"{scaled:.3g} {UNITS[unit]}"


def parse_size(text: str) -> int:
    """The bytes that `text` spells: a number, hexadecimal or with a fraction and b, k, M, G, T, P or E.

    Raises:
        ValueError: It spells none, or more than a file can have.
    """
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size: a number, with k, M, G, T, P or E if wanted")
    hexadecimal, whole, fraction, suffix = (
        match["hexadecimal"],
        match["whole"],
        match["fraction"],
        match["unit"],
    )
    if hexadecimal:
        size = int(hexadecimal, 16)
    else:
        fraction, bits = fraction or "", SUFFIXES[suffix.lower()]
        if bits == 0 and fraction.strip("0"):
            raise ValueError(f"{text!r} is no size: there are no parts of a byte")
        # A fraction of a byte in what is left is dropped.
        size = (int(whole + fraction) << bits) // 10 ** len(fraction)
    if size >= SIZES:
        raise ValueError(f"{text!r} is too much: sizes are below 8 EiB")
    return size


def escape(text: Any) -> str:
    r"""`text` with what a terminal would obey, or what is no character, as `\x..`, `\n` and the like.

    Names come out of untrusted images; bytes that are no UTF-8 arrive as surrogates and leave as `\x..`.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(char: str) -> str:
    undecoded_byte = range(0xDC80, 0xDD00)
    if ord(char) in undecoded_byte:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def describe(error: Exception, *, named: Iterable[object] = ()) -> str | None:
    """The line that tells a user of `error`; None if it is a defect of ours, which needs its traceback.

    `named` are the words of the command line. A file that is not among them came out of an image, and the
    error's notes say how.
    """
    match error:
        case OSError(filename=name, strerror=str(reason)) if name is not None:
            notes = [] if name in named else getattr(error, "__notes__", [])
            return escape(f"{_name(name)}: {reason}" + "".join(f" ({note})" for note in notes))
        case OSError(filename=None, strerror=str(reason)):  # such as of standard output
            return escape(": ".join([*getattr(error, "__notes__", []), reason]))
        case ImplicitOpenDeniedError():
            return escape(f"{error} (--allow-implicit)")
        case WrongSecretError():
            return escape(f"{error} ({GIVEN})")
        case OSError() | ImagoError() | UsageError() | ValueError():
            return escape(error)
        case _:
            return None


def _name(name: object) -> object:
    return (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name) or "''"
