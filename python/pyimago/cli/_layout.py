"""`-o`: how a new image is laid out, in qemu-img's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

from pyimago.cli._text import UsageError, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

VERSIONS: dict[str, Literal[2, 3]] = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
COMPRESSIONS: dict[str, Literal["zlib", "zstd"]] = {"zlib": "zlib", "zstd": "zstd"}
SWITCH = {
    "on": True,
    "yes": True,
    "true": True,
    "y": True,
    "off": False,
    "no": False,
    "false": False,
    "n": False,
}

HELP = {
    "cluster_size": "bytes of a cluster, or with k, M",
    "compat": "version of the format: v2 [0.10] or v3 [1.1]",
    "compression_type": "how clusters are packed: zlib or zstd",
    "extended_l2": "allocate in 32nds of a cluster: on or off",
    "lazy_refcounts": "put off refcount updates: on or off",
    "refcount_bits": "width of a refcount in bits",
}


class Layout(TypedDict, total=False):
    """How the target is laid out; what is absent is the library's choice."""

    cluster_size: int
    refcount_bits: int
    version: Literal[2, 3]
    compression_type: Literal["zlib", "zstd"]
    extended_l2: bool
    lazy_refcounts: bool


def parse(options: Sequence[str]) -> Layout:
    """The layout that the `-o name=value,...` arguments ask for; `,,` in a value is a comma."""
    layout = Layout()
    for option in _split(options):
        name, given, value = option.partition("=")
        # As for QEMU, a name alone switches it on.
        value = value if given else "on"
        match name:
            case "cluster_size":
                layout["cluster_size"] = _size(name, value)
            case "refcount_bits":
                layout["refcount_bits"] = _size(name, value)
            case "compat":
                layout["version"] = _choice(name, value, VERSIONS)
            case "compression_type":
                layout["compression_type"] = _choice(name, value, COMPRESSIONS)
            case "extended_l2":
                layout["extended_l2"] = _choice(name, value, SWITCH)
            case "lazy_refcounts":
                layout["lazy_refcounts"] = _choice(name, value, SWITCH)
            case _:
                raise UsageError(f"no option {name!r}: there are {', '.join(HELP)}")
    return layout


def help_asked(options: Sequence[str]) -> bool:
    """Whether the options are to be told and nothing to be done."""
    return any(option in {"help", "?"} for option in _split(options))


def print_help() -> None:
    """Print the options."""
    print("Supported options:")
    for name, text in HELP.items():
        print(f"  {name:<18} {text}")


def _split(options: Sequence[str]) -> list[str]:
    parts = ",".join(options).replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts if part]


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def _choice(name: str, value: str, choices: dict[str, T]) -> T:
    if value not in choices:
        raise UsageError(f"{name} is one of {', '.join(choices)}, not {value!r}")
    return choices[value]
