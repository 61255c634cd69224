"""What the tests share: both faces of the API on both event loops, images to use, and QEMU's tools."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import pytest
from tests.face import Face

import pyimago

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):  # uvloop is not made for every platform
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every awaited test runs on each of these."""
    return LOOPS


def pytest_configure() -> None:
    """Signals end what the tests start, also where whoever runs them in the background has them ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A synchronous call does not know the loop: once is enough."""
    items[:] = [item for item in items if not {"sync", "uvloop"} <= _parameters(item)]


def _parameters(item: pytest.Item) -> set[str]:
    return set(item.name.rpartition("[")[2].rstrip("]").split("-"))


@pytest.fixture(params=["sync", "awaited"])
def face(request: pytest.FixtureRequest) -> Face:
    """The API, synchronous and awaited."""
    return Face(request.param)


class MakeImage(Protocol):
    """Makes a qcow2 image that holds `content` in the test's folder."""

    def __call__(self, content: bytes, name: str = "image.qcow2") -> Path: ...


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Images without QEMU."""

    def make(content: bytes, name: str = "image.qcow2") -> Path:
        raw, path = tmp_path / f"{name}.raw", tmp_path / name
        raw.write_bytes(content)
        pyimago.convert(raw, path, format="qcow2")
        raw.unlink()
        return path

    return make


async def let_go(path: Path, format: Literal["raw", "qcow2"]) -> None:
    """Until the image at `path` can be had for writing, as what was cancelled has let it go."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with pyimago.aio.open(path, format=format, write=True):
                    return
            except pyimago.ImageLockedError:
                await asyncio.sleep(0.01)


def installed(tool: str) -> str:
    """The path of one of QEMU's tools; the test is skipped where it is missing."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed (Debian: qemu-utils)")
    return path


class Qemu:
    """QEMU's tools, working in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, tool: str, *arguments: str | Path) -> str:
        """What the tool prints; a failure fails the test."""
        done = subprocess.run(
            [tool, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{tool} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def img(self, *arguments: str | Path) -> str:
        return self.run("qemu-img", *arguments)

    def io(self, path: Path, *commands: str) -> str:
        return self.run("qemu-io", "-f", "qcow2", "-d", "unmap", *(f"-c{c}" for c in commands), path)

    def content(self, path: Path) -> bytes:
        """What the guest sees."""
        raw = self.folder / "content.raw"
        self.img("convert", "-f", "qcow2", "-O", "raw", path, raw)
        return raw.read_bytes()

    def assert_clean(self, path: Path) -> None:
        self.img("check", "-q", "-f", "qcow2", path)


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    """QEMU's tools; the test is skipped where they are missing."""
    for tool in ("qemu-img", "qemu-io"):
        installed(tool)
    return Qemu(tmp_path)


def pattern(seed: int, length: int) -> bytes:
    """Bytes that tell where they are: no two 4 KiB pages of one pattern are equal."""
    page = bytes((at * 7 + seed) % 251 for at in range(4088))
    pages = (at.to_bytes(8, "little") + page for at in range(length // 4096 + 1))
    return b"".join(pages)[:length]
