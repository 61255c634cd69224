"""`-o`: what an image is or becomes, in qemu-img's words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from pyimago.cli._text import UsageError, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

LIST = re.compile(r"(?!,).*[^,](,,)*", re.DOTALL)
"""What `-o` takes: no comma begins or ends it that is not one of two."""


def _choice(choices: Mapping[str, T]) -> Callable[[str], T]:
    """Reads one of some words."""

    def read(value: str) -> T:
        if value not in choices:
            raise ValueError(f"is one of {', '.join(choices)}, not {value!r}")
        return choices[value]

    return read


def _same(*words: str) -> Callable[[str], str]:
    return _choice({word: word for word in words})


def _size(value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"cannot be: {error}") from None


def _number(value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"is a number, not {value!r}")
    return int(value)


SWITCH: dict[str, bool] = {
    **dict.fromkeys(("on", "yes", "true", "y"), True),
    **dict.fromkeys(("off", "no", "false", "n"), False),
}
_switch = _choice(SWITCH)
_version = _choice({"0.10": 2, "v2": 2, "1.1": 3, "v3": 3})

Known = dict[str, tuple[str, "Callable[[str], Any]", str]]

OPTIONS: Known = {
    "backing_file": ("backing", str, "the backing file's name"),
    "backing_fmt": ("backing_format", str, "its format"),
    "cluster_size": ("cluster_size", _size, "bytes of a cluster, or with k, M"),
    "compat": ("version", _version, "version of the format: v2 [0.10] or v3 [1.1]"),
    "compression_type": ("compression_type", _same("zlib", "zstd"), "how clusters are packed: zlib or zstd"),
    "data_file": ("data_file", str, "the external data file's name"),
    "data_file_raw": ("data_file_raw", _switch, "the data file is a raw image of the disk: on or off"),
    "encrypt.format": ("encryption", _same("luks", "aes"), "encrypt the guest's data: luks or aes"),
    "encrypt.key-secret": ("secret", str, "the id of the --object secret that opens it"),
    "extended_l2": ("extended_l2", _switch, "allocate in 32nds of a cluster: on or off"),
    "lazy_refcounts": ("lazy_refcounts", _switch, "put off refcount updates: on or off"),
    "preallocation": (
        "preallocation",
        _same("off", "metadata", "falloc", "full"),
        "space set aside: off, metadata, falloc or full",
    ),
    "refcount_bits": ("refcount_bits", _number, "width of a refcount in bits"),
    "size": ("size", _size, "size of the disk"),
}
"""For each name the keyword argument that it becomes, how its value is read, and what it means."""

for _name, _text in {
    "cipher-alg": "the cipher, with the bits of its key: aes-256",
    "cipher-mode": "how it goes from block to block: xts",
    "ivgen-alg": "how each sector gets its initialisation vector: plain64",
    "ivgen-hash-alg": "the hash function in that",
    "hash-alg": "the hash function for secrets: sha256",
}.items():
    OPTIONS[f"encrypt.{_name}"] = (_name.replace("-", "_"), str, _text)
OPTIONS["encrypt.iter-time"] = ("iter_time", _number, "milliseconds that trying a secret shall take")

CONVERTED: Known = {
    **OPTIONS,
    "compression_level": ("compression_level", _number, "how hard clusters are packed"),
}
"""The same for `convert`: one that is no property of the image."""

AMENDABLE: Known = {
    **OPTIONS,
    "encrypt.keyslot": ("keyslot", _number, "number of the key slot, 0 to 7"),
    "encrypt.new-secret": ("new_secret", str, "the id of the --object secret that opens the slot made"),
    "encrypt.old-secret": ("old_secret", str, "the id of the --object secret that opens those to erase"),
    "encrypt.state": ("keyslot_state", _same("active", "inactive"), "make a key slot (active) or erase it"),
}
"""The same for `amend`, which says itself of what cannot change why not."""
FIXED = {
    "cluster_size",
    "compression_type",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.format",
    "encrypt.hash-alg",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.key-secret",
    "extended_l2",
    "preallocation",
}
"""Those that no image changes."""
LUKS = "encrypt."
"""What the names of LUKS's own options begin with where LUKS is within another format."""
VALUES: dict[Callable[[str], Any], str] = {_size: "size", _number: "num", _switch: "bool (on/off)"}
SECRETS = ("secret", "new_secret", "old_secret")


def given(options: Sequence[str], known: Known = OPTIONS) -> dict[str, str]:
    """The values of the `-o name=value,...` arguments by their full names, as they are spelled.

    `,,` in a value is a comma. LUKS images take the options of `encrypt.` without that.
    """
    values: dict[str, str] = {}
    for option in split(options):
        name, value = member(option)
        full = name if name in known else LUKS + name
        if full not in known:
            typed = option.partition("=")[0]
            raise UsageError(f"no option {typed!r}: there are {', '.join(sorted(known))}")
        values[full] = value
    return values


def parse(
    options: Sequence[str], secrets: Mapping[str, bytes] | None = None, known: Known = OPTIONS
) -> dict[str, Any]:
    """The keyword arguments that the `-o name=value,...` arguments ask for.

    `secrets` are those that `--object secret` defined, by id.
    """
    layout: dict[str, Any] = {}
    for name, value in given(options, known).items():
        keyword, read, _ = known[name]
        try:
            layout[keyword] = read(value)
        except ValueError as error:
            raise UsageError(f"{name} {error}") from None
    for keyword in SECRETS:
        if keyword in layout:
            layout[keyword] = secret(layout[keyword], secrets or {})
    return layout


def secret(name: str, secrets: Mapping[str, bytes]) -> bytes:
    """The secret of that id."""
    if name not in secrets:
        raise UsageError(f"no secret with the id {name!r}: give it with --object secret,id={name},file=NAME")
    return secrets[name]


def help_asked(options: Sequence[str]) -> bool:
    """Whether the options are to be told and nothing to be done."""
    return any(option in {"help", "?"} for option in split(options))


def print_created(kind: str, *, named: bool, known: Known = OPTIONS) -> None:
    """Print what a new image of the format `kind` takes; its file has options, too, where it is `named`."""
    if kind == "raw":
        names = ["size", *(["preallocation"] if named else [])]
    elif kind == "luks":
        names = ["size", *(name for name in known if name.startswith(LUKS) and name != "encrypt.format")]
    else:
        names = list(known)
    _print(kind, "Supported options:" if named else f"Supported {kind} options:", names, known)
    if not named:
        print("\nThe protocol level may support further options.")
        print("Specify the target filename to include those options.")


def print_amendable(kind: str) -> None:
    """Print what can be changed of an image of the format `kind`."""
    if kind == "raw":
        raise UsageError("Format driver 'raw' does not support option amendment")
    names = [name for name in AMENDABLE if kind == "qcow2" or name.startswith(LUKS)]
    _print(kind, f"Amend options for '{kind}':", [name for name in names if name not in FIXED], AMENDABLE)


def _print(kind: str, title: str, names: Sequence[str], known: Known) -> None:
    """As qemu-img does: for each its name, what kind of value it has, and what it means."""
    if kind not in {"raw", "qcow2", "luks"}:
        raise UsageError(f"Unknown file format '{kind}'")
    print(title)
    for name in sorted(names):
        _, read, text = known[name]
        shown = name.removeprefix(LUKS) if kind == "luks" else name
        word = f"{shown}=<{VALUES.get(read, 'str')}>"
        print(f"  {word:<22} - {text}")


def split(options: Sequence[str]) -> list[str]:
    parts = ",".join(options).replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts if part]


def member(option: str) -> tuple[str, str]:
    """The name and value of `name=value`; as for QEMU, `name` alone switches it on, and `noname` off."""
    name, equals, value = option.partition("=")
    if equals:
        return name, value
    return (name[2:], "off") if name.startswith("no") else (name, "on")
