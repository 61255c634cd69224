"""Block devices of each kind, and the commands to compare."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.cli.conftest import Run, runner

DISKS = Path("/run/disks")
SIZE = 24 << 20
GARBAGE = b"\xa5" * (1 << 20)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """One loop is enough here."""
    return {"asyncio": asyncio.new_event_loop}


def run(*command: str | Path) -> str:
    """What a command prints; a failure fails the test."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(params=["plain", "blocks4k", "loop", "loop4k"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A block device of `SIZE` bytes, full of something else: blocks of 512 or 4096, of a disk or a file."""
    if not request.param.startswith("loop"):
        path = (DISKS / request.param).resolve()
        soil(path)
        yield path
        return
    file = tmp_path / "of-loop"
    file.write_bytes(GARBAGE * (SIZE // len(GARBAGE)))
    block = "4096" if request.param == "loop4k" else "512"
    path = Path(run("losetup", "--find", "--show", "--sector-size", block, file))
    yield path
    run("losetup", "--detach", path)


def soil(device: Path) -> None:
    """Fills a device with something else than zeroes."""
    with device.open("r+b", buffering=0) as file:
        for _ in range(SIZE // len(GARBAGE)):
            file.write(GARBAGE)


@pytest.fixture
def disk() -> Path:
    """The one of them that differs most from a file: with blocks of 4096 bytes, and a queue of its own."""
    path = (DISKS / "blocks4k").resolve()
    soil(path)
    return path


@pytest.fixture
def pyimago_command(tmp_path: Path) -> Run:
    """The command `pyimago`."""
    return runner("pyimago", tmp_path)


@pytest.fixture
def qemu_img(tmp_path: Path) -> Run:
    """The command `qemu-img`."""
    return runner("qemu-img", tmp_path)
