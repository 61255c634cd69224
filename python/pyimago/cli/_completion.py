"""Print what has SHELL complete this command's subcommands, options and their values at TAB."""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyimago.cli import _layout
from pyimago.cli._arguments import Parser, name
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn

FORMATS = ("luks", "qcow2", "raw")
SWITCH = ("on", "off")
VALUES = {
    "backing_fmt": FORMATS,
    "cluster_size": ("4k", "64k", "128k", "512k", "1M", "2M"),
    "compat": ("0.10", "1.1"),
    "compression_type": ("zlib", "zstd"),
    "data_file_raw": SWITCH,
    "encrypt.format": ("aes", "luks"),
    "extended_l2": SWITCH,
    "lazy_refcounts": SWITCH,
    "preallocation": ("falloc", "full", "metadata", "off"),
    "refcount_bits": ("1", "2", "4", "8", "16", "32", "64"),
}
"""Of options that have words or usual numbers as values."""


def add_arguments(parser: Parser) -> None:
    """What `completion` takes."""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "fish", "zsh"), help="bash, zsh or fish")


def run(arguments: argparse.Namespace) -> None:
    """Print the script."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise UsageError("completion needs the package argcomplete: pip install argcomplete") from None
    print(shellcode([name()], shell=arguments.shell))


def complete(commands: Mapping[str, str]) -> NoReturn:
    """Answer the shell, which asks by running the command with an environment that says what was typed."""
    import argcomplete

    argcomplete.autocomplete(_parser(commands), always_complete_options=False)
    raise SystemExit(1)  # nobody asked


def _parser(commands: Mapping[str, str]) -> Parser:
    """One for the whole command line; only the subcommand that was typed, if any, is filled."""
    parser = Parser(prog=name())
    parsers = parser.add_subparsers()
    typed = os.environ["COMP_LINE"].split()[1:2]
    for command, text in commands.items():
        subparser = parsers.add_parser(command, help=text)
        if typed == [command]:
            import_module(f"pyimago.cli._{command}").add_arguments(subparser)
            for action in subparser._actions:
                if completer := COMPLETERS.get(str(action.metavar)):
                    action.completer = completer  # type: ignore[attr-defined]
    return parser


def _words(*words: str) -> Callable[..., Iterable[str]]:
    def complete(**_: Any) -> Iterable[str]:
        return words

    return complete


def _options(prefix: str, **_: Any) -> Iterable[str]:
    """What `prefix`, the words of `-o` so far, can become."""
    before, comma, last = prefix.rpartition(",")
    option, given, _value = last.partition("=")
    if given:
        return [f"{before}{comma}{option}={value}" for value in VALUES.get(option, ())]
    words = [f"{option}=" for option in _layout.OPTIONS]
    return [f"{before}{comma}{word}" for word in (words if before else ["help", *words])]


NUMBERS_AND_NAMES = (
    *("SIZE", "[+-]SIZE", "OFFSET", "LENGTH", "RATE", "COUNT", "DEPTH", "BYTE", "N"),
    *("NAME", "SNAPSHOT", "SOURCE"),
)
COMPLETERS: dict[str, Callable[..., Iterable[str]]] = {
    "FMT": _words(*FORMATS),
    "MODE": _words("none", "writeback", "writethrough", "directsync", "unsafe"),
    "NAME=VALUE[,...]": _options,
    "secret,id=ID,...": _words("secret,id="),
    **dict.fromkeys(NUMBERS_AND_NAMES, _words()),
}
"""By what the help calls the value; all else is a file or one of the choices."""
