"""The `pyimago` command: what a person spells in a shell.

Each subcommand is a module of its own that is imported when it runs, so that `pyimago --help` and a wrong
command answer at once. Called by another name (a link `qemu-img`) it reports by that name.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Generator, Sequence
    from typing import NoReturn

__all__ = ["main"]

FAILED = 1
ENDING = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal is gone",
}
"""The signals that end a program. What was written so far is removed first, whichever it is."""
STDOUT = 1
"""Its descriptor."""

COMMANDS = {
    "amend": "change the version of an image, its refcounts, the files it names",
    "bench": "measure how fast an image is",
    "bitmap": "change a persistent dirty bitmap in an image",
    "check": "check an image's metadata, and repair it",
    "commit": "write what an image holds into its backing file",
    "compare": "say whether two images have the same content",
    "completion": "print what has a shell complete this command's words",
    "convert": "write the content of an image as a new image",
    "create": "create an image",
    "dd": "write blocks of an image as a new image",
    "hash": "print a hash of the content, equal for equal content",
    "info": "print what an image says of itself",
    "map": "print where the content is",
    "measure": "print how large a file a new image would need",
    "rebase": "put another backing file below an image",
    "resize": "make the disk of an image larger or smaller",
    "snapshot": "list, take, apply or delete snapshots in an image",
}

EXAMPLES = """\
examples:
  pyimago info disk.qcow2                                what it is, without opening anything else
  pyimago info --backing-chain --output=json disk.qcow2
  pyimago convert -p disk.qcow2 disk.raw                 flat, with its backing files' content
  pyimago convert -f raw -O qcow2 disk.raw disk.qcow2    -f: never guess what a guest could write to

`pyimago COMMAND --help` tells more."""


@contextmanager
def _deaf() -> Generator[None]:
    """SIGUSR1 ends no command, as it ends none of qemu-img's. It asks how far one is; some have no answer."""
    number = getattr(signal, "SIGUSR1", None)
    before = None
    with suppress(ValueError):  # signals are the main thread's
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        if number is not None and before is not None:
            signal.signal(number, before)


@_deaf()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (`sys.argv[1:]` if None) and return its exit status.

    Failures are one line on stderr, `NAME: message`, with status 1. Ctrl-C is status 130: with `argv` None,
    where this is the whole program, by dying of the signal, without which a shell goes on with its script.
    """
    arguments: Namespace | None = None
    try:
        # A name that the terminal's encoding does not have is escaped like one that would harm it.
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")
        try:
            if "_ARGCOMPLETE" in os.environ:
                from pyimago.cli import _completion

                _completion.complete(COMMANDS)
            command, words = _split(sys.argv[1:] if argv is None else list(argv))
            from importlib import import_module

            from pyimago.cli._arguments import Parser, name
            from pyimago.cli._examples import epilog

            module = import_module(f"pyimago.cli._{command}")
            parser = Parser(
                prog=f"{name()} {command}", description=module.__doc__, epilog=epilog(command, name())
            )
            module.add_arguments(parser)
            parser.set_defaults(command=command, wants_options=False)
            arguments = parser.parse_args(getattr(module, "prepare", list)(parser.joined(words)))
            with _tidy_end():
                return (module.options if arguments.wants_options else module.run)(arguments) or 0
        finally:
            # --help and --version end by SystemExit. There is no stdout at all where it was closed (`>&-`).
            if flush := getattr(sys.stdout, "flush", None):
                flush()
    except (KeyboardInterrupt, Ended) as end:
        return _end(getattr(end, "number", signal.SIGINT), die=argv is None)
    except BrokenPipeError:
        # The reader of our output left. Python flushes stdout once more at exit: let it do so into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return FAILED
    except Exception as error:
        from pyimago.cli import _arguments, _text

        message = _text.describe(error, named=vars(arguments).values() if arguments else ())
        if message is None:
            raise
        print(f"{_arguments.name()}: {message}", file=sys.stderr)
        return getattr(error, "exit_status", FAILED)


class Ended(BaseException):
    """A signal that ends the program came."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


@contextmanager
def _tidy_end() -> Generator[None]:
    """Has the signals of `ENDING` unwind the program as Ctrl-C does; an ignored one (nohup) stays ignored."""

    def end(number: int, _: object) -> NoReturn:
        raise Ended(number)

    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: signal.Signals, *, die: bool) -> int:
    """Say that the signal ended us, and end by it or return the status that a shell gives it."""
    before = signal.signal(number, signal.SIG_IGN)  # an impatient second one
    from pyimago.cli._arguments import name
    from pyimago.cli._progress import fresh_line

    with suppress(OSError):  # of a terminal that is gone
        print(f"{fresh_line()}{name()}: {ENDING[number]}", file=sys.stderr, flush=True)
    if die:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    signal.signal(number, before)
    return 128 + number


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command among the words of the command line, and what follows it."""
    while words and words[0].startswith(("-T", "--trace")):
        # Which of QEMU's events to trace. There are none here.
        words = words[2 if words[0] in {"-T", "--trace"} else 1 :]
    if words and words[0] in COMMANDS:
        return words[0], words[1:]
    from pyimago.cli._arguments import Parser, Version, name

    parser = Parser(
        prog=name(),
        usage="%(prog)s COMMAND ...",
        description="VM disk images: look into them, convert them, compare them.\n\ncommands:\n"
        + "\n".join(f"  {command:<12}{text}" for command, text in COMMANDS.items())
        + "\n\nSupported image formats:\n  luks qcow2 raw",
        epilog=EXAMPLES,
    )
    parser.add_argument("-V", "--version", action=Version, nargs=0, help="print the version and exit")
    parser.add_argument("command", metavar="COMMAND", help="what to do")
    typed: str = parser.parse_args(words[:1]).command
    from difflib import get_close_matches

    like = get_close_matches(typed, COMMANDS, n=1)
    return parser.error(f"no command {typed!r}" + (f", did you mean {like[0]!r}?" if like else ""))
