"""Measure how fast IMAGE is: many requests, so many at a time. With -w its content is overwritten."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress, size
from pyimago.cli._images import Images, add_naming
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

ENGINES = ("threads", "native", "io_uring")
CACHES = {
    "none": (True, False),
    "writeback": (False, False),
    "writethrough": (False, True),
    "directsync": (True, True),
    "unsafe": (False, False),
}
"""Whether each bypasses the page cache, and whether it makes every write durable."""


def add_arguments(parser: Parser) -> None:
    """What `bench` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image, with the files it names")
    add_format(parser)
    add_naming(parser, share=True)
    parser.add_argument("-c", "--count", metavar="COUNT", type=int, default=75_000, help="requests (75000)")
    parser.add_argument("-d", "--depth", metavar="DEPTH", type=int, default=64, help="at a time (64)")
    parser.add_argument("-s", "--buffer-size", metavar="SIZE", type=size, default=4096, help="of each (4k)")
    parser.add_argument("-S", "--step-size", metavar="SIZE", type=size, default=0, help="to the next")
    parser.add_argument("-o", "--offset", metavar="OFFSET", type=size, default=0, help="of the first")
    parser.add_argument("-w", "--write", action="store_true", help="write; IMAGE loses its content")
    parser.add_argument("--pattern", metavar="BYTE", type=int, default=0, help="what to write (0)")
    parser.add_argument("--flush-interval", metavar="COUNT", type=int, default=0, help="writes to a flush")
    parser.add_argument("--no-drain", action="store_true", help="writes go on while there is a flush")
    parser.add_argument(
        "-i", "--aio", metavar="AIO", choices=ENGINES, default="threads", help="taken, and without effect"
    )
    parser.add_argument("-n", "--native", dest="aio", action="store_const", const="native", help="-i native")
    parser.add_argument(
        "-t", "--cache", metavar="CACHE", choices=CACHES, default="writeback", help="as for qemu-img"
    )
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure as the command line says."""
    direct, durable = CACHES[arguments.cache]
    _check(arguments, direct=direct)
    step = arguments.step_size or arguments.buffer_size
    interval = arguments.flush_interval or None

    if durable and arguments.write:
        interval = 1
    elif arguments.cache == "unsafe":
        interval = None
    with (
        Images(arguments).opened(
            arguments.image, arguments.format, write=arguments.write, cache=arguments.cache
        ) as image,
        show(arguments, result_on_stdout=True) as progress,
    ):

        def told(done: int, total: int) -> None:
            if not done:
                _announce(arguments, step)
            progress(done, total)

        try:
            result = pyimago.bench(
                image,
                write=arguments.write,
                count=arguments.count,
                depth=arguments.depth,
                request_size=arguments.buffer_size,
                offset=arguments.offset,
                step=step,
                pattern=arguments.pattern,
                flush_interval=interval,
                drain=not (arguments.no_drain or durable),
                progress=told,
            )
        finally:
            # Nobody misses what was written.
            image.close(durable=False)
    print(f"Run completed in {result.seconds:.3f} seconds.")


def _announce(arguments: argparse.Namespace, step: int) -> None:
    """What comes, once the image is open."""
    what = "write" if arguments.write else "read"
    print(
        f"Sending {arguments.count} {what} requests, {arguments.buffer_size} bytes each, {arguments.depth} in"
        f" parallel (starting at offset {arguments.offset}, step size {step})"
    )
    if arguments.flush_interval:
        print(f"Sending flush every {arguments.flush_interval} requests")
    sys.stdout.flush()


def _check(arguments: argparse.Namespace, *, direct: bool) -> None:
    """Refuses what qemu-img refuses, with its words."""
    for number, name, least, most in (
        (arguments.count, "request count", 1, 2**31 - 1),
        (arguments.depth, "queue depth", 1, 2**31 - 1),
        (arguments.buffer_size, "buffer size", 1, 2**31 - 1),
        (arguments.step_size, "step size", 0, 2**31 - 1),
        (arguments.pattern, "pattern byte", 0, 255),
    ):
        if not least <= number <= most:
            raise UsageError(f"Invalid {name} specified. Must be between {least} and {most}.")
    if arguments.flush_interval and not arguments.write:
        raise UsageError("--flush-interval is only available in write tests")
    if 0 < arguments.flush_interval < arguments.depth:
        raise UsageError("Flush interval can't be smaller than depth")
    if arguments.write and arguments.force_share:
        raise UsageError("-U is for reading only")
    if arguments.aio == "native" and not direct:
        raise UsageError("aio=native needs -t none or -t directsync")
