"""`-o`: what an image is or becomes, in qemu-img's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pyimago.cli._text import UsageError, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")


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
    "refcount_bits": ("refcount_bits", _size, "width of a refcount in bits"),
    "size": ("size", _size, "size of the disk"),
}
"""For each name the keyword argument that it becomes, how its value is read, and what it means."""

for _name in ("cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg"):
    OPTIONS[f"encrypt.{_name}"] = (_name.replace("-", "_"), str, f"{_name} of the encryption")
OPTIONS["encrypt.iter-time"] = ("iter_time", _size, "milliseconds that trying a secret shall take")

AMENDABLE: Known = {
    **OPTIONS,
    "encrypt.keyslot": ("keyslot", _size, "number of the key slot, 0 to 7"),
    "encrypt.new-secret": ("new_secret", str, "the id of the --object secret that opens the slot made"),
    "encrypt.old-secret": ("old_secret", str, "the id of the --object secret that opens those to erase"),
    "encrypt.state": ("keyslot_state", _same("active", "inactive"), "make a key slot (active) or erase it"),
}
"""The same for `amend`, which says itself of what cannot change why not."""
SECRETS = ("secret", "new_secret", "old_secret")


def parse(
    options: Sequence[str], secrets: Mapping[str, bytes] | None = None, known: Known = OPTIONS
) -> dict[str, Any]:
    """The keyword arguments that the `-o name=value,...` arguments ask for; `,,` in a value is a comma.

    `secrets` are those that `--object secret` defined, by id. LUKS images take the options of `encrypt.`
    without that.
    """
    layout: dict[str, Any] = {}
    for option in split(options):
        name, given, value = option.partition("=")
        found = known.get(name) or known.get(f"encrypt.{name}")
        if found is None:
            raise UsageError(f"no option {name!r}: there are {', '.join(sorted(known))}")
        keyword, read, _ = found
        try:
            # As for QEMU, a name alone switches it on.
            layout[keyword] = read(value if given else "on")
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


def print_help(known: Known) -> None:
    """Print the options."""
    print("Supported options:")
    for name, (_, _, text) in sorted(known.items()):
        print(f"  {name:<22} {text}")


def split(options: Sequence[str]) -> list[str]:
    parts = ",".join(options).replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts if part]


def members(text: str) -> dict[str, str]:
    """The members of `type,name=value,...`; the first word has the name `""`."""
    kind, *rest = split([text])
    return {"": kind} | {name: value for name, _, value in (part.partition("=") for part in rest)}
