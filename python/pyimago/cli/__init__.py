"""The `pyimago` command: what a person spells in a shell.

Each subcommand lives in a module of its own that is imported when it runs, so that `pyimago --help` and a
wrong option answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]

FAILED = 1
INTERRUPTED = 130
STDOUT = 1
"""Its descriptor."""
"""128 + SIGINT, what a shell reports for a command that Ctrl-C ended."""

EXAMPLES = """\
examples:
  pyimago info disk.qcow2                                what it is, without opening anything else
  pyimago info --backing-chain --output=json disk.qcow2
  pyimago convert -p disk.qcow2 disk.raw                 flat, with its backing files' content
  pyimago convert -f raw -O qcow2 disk.raw disk.qcow2    -f: never guess what a guest could write to

`pyimago COMMAND --help` tells more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (`sys.argv[1:]` if None) and return its exit status.

    Failures are one line on stderr, `NAME: message`, with status 1; Ctrl-C is status 130.
    """
    arguments = argparse.Namespace()
    try:
        # A name that the terminal's encoding does not have is escaped like one that would harm it.
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")
        try:
            _parser().parse_args(argv, arguments)
            importlib.import_module(arguments.module).run(arguments)
        finally:
            # --help and --version end by SystemExit. There is no stdout at all where it was closed (`>&-`).
            if flush := getattr(sys.stdout, "flush", None):
                flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python flushes stdout once more at exit: let it do so into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return FAILED
    except Exception as error:
        from pyimago.cli import _text

        message = _text.describe(error, named=vars(arguments).values())
        if message is None:
            raise
        print(f"{_name()}: {message}", file=sys.stderr)
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_name(),
        description="VM disk images: look into them and convert them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_info(
        commands.add_parser(
            "info",
            help="print what an image says of itself",
            description="Print what IMAGE says of itself. No other file is opened without --backing-chain.",
        )
    )
    _add_convert(
        commands.add_parser(
            "convert",
            help="write the content of an image as a new image",
            description="Write the guest's view of IN as the new image OUT, which appears, or is replaced, "
            "only once it is complete.",
        )
    )
    return parser


def _add_info(command: _Parser) -> None:
    command.add_argument("image", metavar="IMAGE", help="the image's file")
    command.add_argument("-f", "--format", metavar="FMT", help="format of IMAGE (default: probed)")
    command.add_argument("--output", choices=("human", "json"), default="human")
    command.add_argument("--backing-chain", action="store_true", help="the backing files too, topmost first")
    _add_implicit(command)
    command.set_defaults(module="pyimago.cli._info")


def _add_convert(command: _Parser) -> None:
    command.add_argument("source", metavar="IN", help="the image to read, with the files it names")
    command.add_argument("target", metavar="OUT", help="the image to write, on its own")
    command.add_argument("-f", "--source-format", metavar="FMT", help="format of IN (default: probed)")
    command.add_argument("-O", "--target-format", metavar="FMT", default="raw", help="format of OUT (raw)")
    command.add_argument(
        "-o",
        "--options",
        metavar="NAME=VALUE[,...]",
        action="append",
        default=[],
        help="of OUT: cluster_size (bytes, or with k, M), compat (0.10 or 1.1), refcount_bits",
    )
    command.add_argument("-p", "--progress", action="store_true", help="show the progress on stdout")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _add_implicit(command)
    command.set_defaults(module="pyimago.cli._convert")


def _add_implicit(command: _Parser) -> None:
    command.add_argument(
        "--implicit",
        choices=("beside", "deny", "allow"),
        default="beside",
        help="which files that an image names may be opened: those beside or below it (default), none, all",
    )


def _name() -> str:
    """The name we were called by; `python -m pyimago.cli` has none of its own."""
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - pathlib costs a third of the time --help takes
    return name if name and name != "__main__.py" else "pyimago"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other failure: one line, status 1."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: {message}; see `{self.prog} --help`\n")


class _Version(argparse.Action):
    """`--version` that looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print("pyimago", version("pyimago"))
        parser.exit()
