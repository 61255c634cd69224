"""How commands take their arguments: as qemu-img does."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from pyimago.cli._text import UsageError, escape, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from typing import NoReturn

FAILED = 1
UPSTREAM = "10.0.0"
OBJECTS_HELP = ("List of user creatable objects:", "  secret")
SECRET_HELP = ("secret options:", "  data=<string>", "  file=<string>", "  format=<QCryptoSecretFormat>")
ID = re.compile(r"[a-z][a-z0-9._-]*", re.ASCII | re.IGNORECASE)


def name() -> str:
    """The name we were called by; `python -m pyimago.cli` has none of its own."""
    called = os.path.basename(sys.argv[0])  # noqa: PTH119 - pathlib costs a third of the time --help takes
    return called if called and called != "__main__.py" else "pyimago"


class Help(argparse.HelpFormatter):
    """Fills paragraphs as argparse does, and leaves those that are lists as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            paragraph if "\n  " in paragraph else super(Help, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other failure: one line, status 1."""

    def __init__(self, **options: str | None) -> None:
        super().__init__(formatter_class=Help, **options)  # type: ignore[arg-type]

    def joined(self, words: Sequence[str]) -> list[str]:
        """The same words, where an option has its value in its own if that begins with a dash.

        As for qemu-img it is the value all the same.
        """
        found: list[str] = []
        left = iter(words)
        for word in left:
            if word == "--":
                return [*found, word, *left]
            if "=" in word and not word.startswith("--") and self._takes(word.partition("=")[0]):
                # The value of a short option is all behind its letter.
                letters, _, behind = word.partition("=")
                found += [letters, f"={behind}"]
                continue
            action = self._option_string_actions.get(word)
            value = next(left, None) if action is not None and action.nargs is None else None
            if value is not None and value.startswith("-") and value != "--":
                found.append(f"{word}={value}" if word.startswith("--") else word + value)
            else:
                found += [word, *([] if value is None else [value])]
        return found

    def _takes(self, letters: str) -> bool:
        """Whether the last of the short options in `-abc`, and only that, takes a value."""
        actions = [self._option_string_actions.get(f"-{letter}") for letter in letters[1:]]
        *others, last = [action is None or action.nargs is None for action in actions] or [False]
        return letters.startswith("-") and None not in actions and last and True not in others

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        self.exit(FAILED, f"{name()}: {escape(message)}; see `{self.prog} --help`\n")


class Version(argparse.Action):
    """`--version` that looks the version up only when it is asked for.

    Programs that ask qemu-img look for a version of QEMU's: the one whose options there are.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and end."""
        from importlib.metadata import version

        ours = f"pyimago {version('pyimago')}"
        print(f"qemu-img version {UPSTREAM} ({ours})" if name() == "qemu-img" else ours)
        parser.exit()


class Options(argparse.Action):
    """`-o`, any number of times; for `-o help` no image needs to be named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: object, *_: object
    ) -> None:
        """Gather them."""
        from pyimago.cli import _layout

        if not _layout.LIST.fullmatch(str(value)):
            parser.error(f"Invalid option list: {value}")
        if _layout.help_asked([str(value)]):
            for action in parser._actions:  # argparse has no other way to them
                action.required = False
            namespace.wants_options = True
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), value])


class Objects(argparse.Action):
    """`--object`, any number of times; `help` in one ends the command, as for qemu-img."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: object, *_: object
    ) -> None:
        """Gather them."""
        from pyimago.cli import _layout

        text = str(value)
        if not text.startswith("{") and _layout.help_asked([text]):
            of_secrets = _layout.split([text])[0] in {"secret", "qom-type=secret"}
            print("\n".join(SECRET_HELP if of_secrets else OBJECTS_HELP))
            parser.exit()
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), text])


class Change(argparse.Action):
    """One of the options that say what to do, kept in their order as `changes`."""

    def __call__(self, _: object, namespace: argparse.Namespace, value: object, *__: object) -> None:
        """Remember it."""
        namespace.changes = [*namespace.changes, (self.dest, value)]


def add_format(parser: Parser) -> None:
    """`-f`."""
    parser.add_argument("-f", "--format", metavar="FMT", help="its format (default: probed)")


def add_output(parser: Parser) -> None:
    """`--output`."""
    parser.add_argument(
        "--output", choices=("human", "json"), default="human", help="for people (default) or programs"
    )


def _anything(_name: str, _kind: str) -> bool:
    """Whoever trusts an image takes its descriptions of others, too."""
    return True


def add_implicit(parser: Parser) -> None:
    """Which files that an image names may be opened."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--allow-implicit",
        dest="implicit",
        action="store_const",
        const=_anything,
        default="beside",
        help="open all that an image names or describes (json:), not only files beside or below it",
    )
    which.add_argument(
        "--deny-implicit",
        dest="implicit",
        action="store_const",
        const="deny",
        help="open no file that an image names",
    )


def add_options(parser: Parser) -> None:
    """`-o`."""
    parser.add_argument(
        "-o",
        "--options",
        metavar="NAME=VALUE[,...]",
        action=Options,
        default=[],
        help="how the new image is laid out; `-o help` tells",
    )


def add_objects(parser: Parser) -> None:
    """`--object`."""
    parser.add_argument(
        "--object",
        metavar="secret,id=ID,...",
        action=Objects,
        default=[],
        help="a secret for options to name: file=NAME has it, or data=TEXT; format=base64 if it is",
    )


def read_secrets(objects: Sequence[str]) -> dict[str, bytes]:
    """The secrets that the `--object` arguments define, by id."""
    secrets: dict[str, bytes] = {}
    for text in objects:
        members = _object(text)
        kind, name = members.pop("qom-type", None), members.pop("id", None)
        if kind != "secret" or name is None:
            raise UsageError("an object is secret,id=ID and file=NAME or data=TEXT")
        if not ID.fullmatch(name):
            raise UsageError(f"{name!r} is no id: one is a letter, and letters, digits, '-', '.' and '_'")
        if name in secrets:
            raise UsageError(f"there are two objects with the id {name!r}")
        secrets[name] = _secret(name, members)
    return secrets


def _secret(name: str, members: dict[str, str]) -> bytes:
    """What the members of a secret say that it is."""
    from pathlib import Path

    file, data = members.pop("file", None), members.pop("data", None)
    form = members.pop("format", "raw")
    if members:
        raise UsageError(f"Parameter '{next(iter(members))}' is unexpected")
    if file is not None:
        secret = Path(file).read_bytes()
    elif data is not None:
        secret = data.encode("utf-8", "surrogateescape")
    else:
        raise UsageError(f"the secret {name!r} has neither file nor data")
    if form == "raw":
        return secret
    if form != "base64":
        raise UsageError(f"the format of a secret is raw or base64, not {form!r}")
    from base64 import b64decode

    try:
        return b64decode(secret, validate=True)
    except ValueError:
        raise UsageError(f"the secret {name!r} is not in base64") from None


def _object(text: str) -> dict[str, str]:
    """The members of `type,name=value,...`, or of the same as JSON."""
    if not text.startswith("{"):
        from pyimago.cli import _layout

        members = [part.partition("=") for part in _layout.split([text])]
        if members and not members[0][1]:
            members[0] = ("qom-type", "=", members[0][0])
        for name, equals, _ in members:
            if not equals:
                raise UsageError(f"Expected '=' after parameter '{name}'")
        return {name: value for name, _, value in members}
    import json

    try:
        return {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--object: {error}") from None


def add_progress(parser: Parser) -> None:
    """`-p`, `--progress=json` and `-q`."""
    parser.add_argument(
        "-p",
        "--progress",
        action="store_const",
        const="human",
        help="show how far it is, even if it is soon done",
    )
    # An option without an argument, spelled with one: a word behind `--progress` is never taken for it.
    parser.add_argument(
        "--progress=json",
        dest="progress",
        action="store_const",
        const="json",
        help="the same for programs: a JSON object a line, on stderr",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def permuted(words: Sequence[str], valued: AbstractSet[str]) -> list[str]:
    """The options among `words`, each with its value, and behind them the rest in its order.

    argparse takes a list of names only where they stand together. `valued` are the options with a value.
    """
    options: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            rest += left
        elif not word.startswith("-") or word == "-":
            rest.append(word)
        else:
            options.append(word)
            if _wants_value(word, valued):
                options += [value for value in (next(left, None),) if value is not None]
    return [*options, "--", *rest] if rest else options


def _wants_value(word: str, valued: AbstractSet[str]) -> bool:
    """Whether the value of the last option in `word` is the next word."""
    if word.startswith("--"):
        return "=" not in word and any(option.startswith(word) for option in valued)
    for at, letter in enumerate(word[1:], 2):
        if f"-{letter}" in valued:
            return at == len(word)
    return False


def size(text: str) -> int:
    """A size as an argument."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
