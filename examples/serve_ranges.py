"""A service over one open image: HTTP range reads of the guest's disk, every client on one event loop.

`serve_ranges.py IMAGE [PORT]`, then for the first sector: `curl -r 0-511 http://127.0.0.1:PORT/ | xxd`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import suppress

import pyimago
import pyimago.aio

CHUNK = 1024 * 1024
RANGE = re.compile(rb"^Range:\s*bytes=(\d{1,19})-(\d{0,19})\s*$", re.IGNORECASE | re.MULTILINE)


def requested(head: bytes, size: int) -> range | None:
    """The bytes that a request's head asks for: all without a Range line; None where there are none."""
    match = RANGE.search(head)
    if match is None:
        return range(size)
    first = int(match[1])
    last = min(int(match[2] or size), size - 1)
    return range(first, last + 1) if first <= last else None


async def answer(
    image: pyimago.FormatAccess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one request. Memory is bounded: one chunk for each client, and `drain` waits for it."""
    head = await reader.readuntil(b"\r\n\r\n")
    wanted = requested(head, image.size)
    if wanted is None:
        writer.write(b"HTTP/1.1 416 Range Not Satisfiable\r\nConnection: close\r\n\r\n")
        return
    writer.write(
        b"HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: %d\r\n"
        b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (len(wanted), wanted.start, wanted.stop - 1, image.size)
    )
    for offset in range(wanted.start, wanted.stop, CHUNK):
        writer.write(await image.pread(min(CHUNK, wanted.stop - offset), offset))
        await writer.drain()


async def serve(path: str, port: int) -> None:
    """Serve the image at `path` on loopback until cancelled; port 0 takes a free one."""
    async with pyimago.aio.open(path) as image:

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(60):
                    await answer(image, reader, writer)
            except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # the client's affair
            finally:
                writer.close()

        server = await asyncio.start_server(client, "127.0.0.1", port)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ serves {path}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0))
    except (OSError, ValueError, pyimago.ImagoError) as error:
        sys.exit(f"serve_ranges: {error}")
