"""An HTTP service that converts uploaded images and tells how far it is.

    convert_uploads.py FOLDER [PORT]
    curl -N -T disk.qcow2 'http://127.0.0.1:PORT/?from=qcow2&to=raw'     # a line of JSON for each step
    curl -O http://127.0.0.1:PORT/NUMBER.raw                            # the result, by the last line's name

All clients share one event loop, the conversions run beside it on all cores. A client that goes away
ends its conversion, and nothing stays behind. Nobody trusts an upload: its format is told and never
guessed, and no file that it names is opened.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from pyimago._types import Format

CHUNK = 1 << 20
FORMATS = {"raw", "qcow2"}
NUMBERS = itertools.count(1)
Step = dict[str, object]


class BadRequestError(Exception):
    """What the client sent makes no sense."""


def free_number(folder: Path) -> int:
    """A number that no result has, those of earlier runs included."""
    return next(number for number in NUMBERS if not any(folder.glob(f"{number}.*")))


async def convert(source: Path, source_format: Format, target: Path, format: Format) -> AsyncGenerator[Step]:
    """Convert, and yield how far it is; closing the generator ends the conversion."""
    loop, steps = asyncio.get_running_loop(), asyncio.Queue[Step | None]()

    def progress(done: int, total: int) -> None:  # on another thread
        step: Step = {"done": done, "total": total}
        loop.call_soon_threadsafe(steps.put_nowait, step)

    conversion = asyncio.ensure_future(
        pyimago.aio.convert(
            source,
            target,
            source_format=source_format,
            format=format,
            implicit="deny",
            compress=format == "qcow2",
            progress=progress,
        )
    )
    conversion.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
        await conversion
    finally:
        conversion.cancel()
        with suppress(asyncio.CancelledError, OSError, pyimago.ImagoError):
            await conversion


async def upload(
    folder: Path, url: str, length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Store the body, convert it, and answer with lines of JSON while that goes on."""
    query = parse_qs(urlsplit(url).query)
    source_format, format = query.get("from", [""])[0], query.get("to", [""])[0]
    if not {source_format, format} <= FORMATS:
        raise BadRequestError(f"from and to are of {', '.join(sorted(FORMATS))}")
    number = free_number(folder)
    source, target = folder / f"{number}.upload", folder / f"{number}.{format}"
    try:
        with source.open("wb") as file:
            while length:
                chunk = await reader.read(min(CHUNK, length))
                if not chunk:
                    return
                length -= len(chunk)
                await asyncio.to_thread(file.write, chunk)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nConnection: close\r\n\r\n")
        last: Step = {"result": target.name}
        try:
            steps = convert(source, cast("Format", source_format), target, cast("Format", format))
            async with aclosing(steps):
                async for step in steps:
                    writer.write(json.dumps(step).encode() + b"\n")
                    await writer.drain()  # a client that is gone ends the conversion here
        except ConnectionError:
            raise
        except (OSError, ValueError, pyimago.ImagoError) as error:
            last = {"error": str(error)}
        writer.write(json.dumps(last).encode() + b"\n")
    finally:
        source.unlink(missing_ok=True)


async def download(folder: Path, url: str, writer: asyncio.StreamWriter) -> None:
    """Send a result."""
    name = re.fullmatch(r"/(\d+\.(?:raw|qcow2))", url)
    path = folder / (name[1] if name else "none")
    if not path.is_file():
        raise BadRequestError("no such result")
    with path.open("rb") as file:
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % path.stat().st_size
        )
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            writer.write(chunk)
            await writer.drain()


async def answer(folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, url = (*head.split(" ", 2), "")[:2]
    length = re.search(r"^content-length: *(\d{1,15})\r$", head, re.IGNORECASE | re.MULTILINE)
    try:
        if method == "GET":
            await download(folder, url, writer)
            return
        if method != "PUT" or not length:
            raise BadRequestError("PUT an image with its length, or GET a result")  # noqa: TRY301
        if re.search(r"^expect: *100-continue\r$", head, re.IGNORECASE | re.MULTILINE):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await upload(folder, url, int(length[1]), reader, writer)
    except BadRequestError as error:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + str(error).encode() + b"\n")


async def serve(folder: Path, port: int) -> None:
    """Serve on loopback until cancelled; port 0 takes a free one."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(folder, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client's affair
        except asyncio.CancelledError:
            pass  # the service ends; CPython 3.11 would print it
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 0))
