"""What is left where a long operation is stopped in the middle: docs/guide.md, "Stopping"."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests import stopping
from tests.conftest import installed, pattern
from tests.stopping import BRIEF, KIB, MIB, SIZE, WORKS, Work, brief, once_written, slowly

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = pattern(1, SIZE)
EVEN, ODD = range(0, SIZE, 512 * KIB), range(256 * KIB, SIZE, 512 * KIB)
"""Halves of a disk, in ranges of 256 KiB."""
BECOMES = {
    "convert into an image": DATA,
    "shrink": DATA[:MIB],
    "bench, writing": b"\7" * SIZE,
}
"""What the image that is changed shows at the end; meanwhile part of that, and else what it showed."""
BROKEN = "broken.qcow2"
"""An image that has lost its refcounts."""
PARTIAL = re.compile(r"\.(out|data)\.\d+-\w+\.partial")


def half(path: Path, seed: int, where: range, **options: Any) -> None:
    """A new image that holds half of a disk."""
    pyimago.create(path, SIZE, format="qcow2", **options)
    with pyimago.open(path, format="qcow2", write=True) as image:
        for at in where:
            image.write(pattern(seed + at // KIB, 256 * KIB), at)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images for all operations."""
    folder = tmp_path_factory.mktemp("images")
    raw, small = folder / "disk.raw", folder / "small.qcow2"
    raw.write_bytes(DATA)
    pyimago.convert(raw, folder / "disk.qcow2", source_format="raw", format="qcow2")
    pyimago.convert(raw, small, source_format="raw", format="qcow2", cluster_size=512)
    below: Any = {"backing": "odd.qcow2", "backing_format": "qcow2"}
    half(folder / "odd.qcow2", 2, ODD)
    half(folder / "top.qcow2", 3, EVEN, **below)
    half(folder / "zeroes.qcow2", 4, range(0), **below)
    with pyimago.open(folder / "zeroes.qcow2", format="qcow2", write=True) as image:
        image.write_zeroes(0, SIZE)
    pyimago.create(folder / "wide.qcow2", 1 << 44, format="qcow2")
    with pyimago.open(folder / "wide.qcow2", format="qcow2", write=True) as image:
        for at in range(0, 1 << 44, 1 << 38):
            image.write(b"x", at)
    shutil.copyfile(small, folder / BROKEN)
    with (folder / BROKEN).open("r+b") as file:
        file.seek(48)  # where its refcount table is
        file.write(bytes(8))
    return folder


def shown(name: str) -> bytes:
    """What a guest sees of the first `SIZE` bytes."""
    with pyimago.open(name) as image:
        return image.pread(min(image.size, SIZE), 0)


def start(name: str) -> bytes:
    """Of a file."""
    with Path(name).open("rb") as file:
        return file.read(2 * SIZE)


def assert_sound(name: str) -> None:
    """But for leaks."""
    done = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", name], capture_output=True, check=False)
    assert done.returncode in {0, 3}, name


def facts(name: str) -> dict[str, Any]:
    """What an image says of itself, which changes last of all."""
    return {} if name == BROKEN else {**pyimago.info(name).to_dict(), "children": None, "actual-size": None}


class Folder:
    """The working directory, with what `work` needs, and what has to be in it once that was stopped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.work = work = WORKS[name]
        self.becomes = BECOMES.get(name)
        if work.makes and work.options.get("overwrite", work.verb != "create"):
            Path("out").write_bytes(b"precious")
        self.images = {*work.keeps, work.changes} - {""}
        self.files = self._files()
        self.shown = {name: shown(name) for name in self.images}
        self.facts = {name: facts(name) for name in work.keeps}

    def _files(self) -> dict[str, bytes]:
        """The start of each file that is not to be written to."""
        names = {path.name for path in Path().iterdir() if not PARTIAL.fullmatch(path.name)}
        return {name: start(name) for name in names - self.images - {self.work.streams}}

    def in_use(self) -> bool:
        """Whether somebody has a file open, or makes a new one."""
        for path in Path().iterdir():
            if path.name.startswith("."):
                return True
            try:
                with pyimago.open(path, format="raw", write=True):
                    pass
            except (pyimago.ImageLockedError, FileNotFoundError):  # in a moment it will not be
                return True
        return False

    def assert_left(self) -> None:
        """Files are what the guide says."""
        work = self.work
        files = self._files()
        assert files.keys() == self.files.keys()
        assert [name for name in files if files[name] != self.files[name]] == []
        for name in self.images - {BROKEN}:
            assert_sound(name)
        for name in work.keeps:
            assert shown(name) == self.shown[name]
            assert facts(name) == self.facts[name]
        if self.becomes is not None:
            self._assert_mixed()

    def _assert_mixed(self) -> None:
        name, new = self.work.changes, self.becomes
        old, found = self.shown[name], shown(name)
        assert new is not None
        assert len(found) == len(new)
        for at in range(0, len(new), 4096):
            page = slice(at, at + 4096)
            assert found[page] in (old[page], new[page])

    def assert_can_be_done_again(self) -> None:
        """Whatever was left of it before."""
        work = self.work
        begun = start(work.streams) if work.streams and Path(work.streams).exists() else b""
        work.now()
        if work.streams:
            whole = start(work.streams)
            assert len(begun) < len(whole)
            assert whole.startswith(begun)
            assert shown(work.streams) == DATA
        if work.verb == "convert" and work.makes:
            pyimago.convert("out", "content", source_secret=b"sesame")
            assert Path("content").read_bytes() == DATA
        for name in self.images:
            assert_sound(name)
        for name in work.keeps:
            assert shown(name) == self.shown[name]
        if self.becomes is not None:
            assert shown(work.changes) == self.becomes


@pytest.fixture
def folder(
    request: pytest.FixtureRequest, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    """That of an operation."""
    installed("qemu-img")
    work = WORKS[request.param]
    named = {str(getattr(argument, "name", argument)) for argument in work.arguments}
    for name in {"disk.raw", "disk.qcow2", "odd.qcow2", *named}:
        if (images / name).exists():
            shutil.copyfile(images / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Folder(request.param)


def of(which: Callable[[Work], object] = lambda _: True) -> pytest.MarkDecorator:
    """For each operation for which `which` holds."""
    return pytest.mark.parametrize("folder", [name for name in WORKS if which(WORKS[name])], indirect=True)


@of()
def test_a_cancelled_task(folder: Folder) -> None:
    async def cancelled() -> None:
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            told = threading.Event()
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(loop.call_soon, told.set)
            assert told.wait(60)

        task = asyncio.create_task(folder.work.awaited(slowly(cancel)))
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            while folder.in_use():
                await asyncio.sleep(0.01)

    asyncio.run(cancelled())
    folder.assert_left()
    folder.assert_can_be_done_again()


@of()
def test_ctrl_c(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt):
        folder.work.now(slowly(lambda: signal.raise_signal(signal.SIGINT)))
    assert not folder.in_use()
    folder.assert_left()
    folder.assert_can_be_done_again()


@of()
def test_kill(folder: Folder) -> None:
    done = subprocess.run([sys.executable, stopping.__file__, folder.name], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    folder.assert_left()
    folder.assert_can_be_done_again()


@contextmanager
def medium() -> Iterator[Callable[[int], None]]:
    """One that is full where a file would be longer than is said by then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@of(lambda work: work.room)
def test_a_full_medium(folder: Folder) -> None:
    size = folder.work.room + max([Path(name).stat().st_size for name in folder.images], default=0)
    with medium() as end_at, pytest.raises(OSError, match="File too large"):
        folder.work.now(lambda *_: end_at(size))
    assert not folder.in_use()
    folder.assert_left()
    folder.assert_can_be_done_again()


@of(lambda work: bool(work.makes))
def test_a_new_file_that_is_removed(folder: Folder) -> None:
    def remove() -> None:
        (path,) = Path().glob(".out.*.partial")
        path.unlink()

    with pytest.raises(FileNotFoundError) as raised:
        folder.work.now(slowly(remove))
    assert raised.value.filename == "out"
    assert not folder.in_use()
    folder.assert_left()
    folder.assert_can_be_done_again()


@of(lambda work: not work.makes)
def test_an_image_that_is_removed(folder: Folder, images: Path) -> None:
    """It is done in the file that has no name any more, and nothing else changes."""
    work = folder.work
    removed = work.changes or work.streams or str(work.arguments[0])
    with pytest.raises(FileNotFoundError) if work.verb == "commit" else nullcontext():
        work.now(slowly(Path(removed).unlink))
    assert not folder.in_use()
    assert not Path(removed).exists()
    if not work.streams:
        # Whoever has it elsewhere, too, has lost nothing.
        shutil.copyfile(images / removed, removed)
    if folder.becomes is None:
        folder.assert_left()
    folder.assert_can_be_done_again()


class Marked:
    """An image with a snapshot and bitmaps, to which something brief is done."""

    def __init__(self, name: str) -> None:
        self.name = name
        pyimago.create("marked.qcow2", SIZE, format="qcow2", cluster_size=4096)
        with pyimago.open("marked.qcow2", format="qcow2", write=True) as image:
            image.write(DATA, 0)
            image.snapshots.create("before")
            image.bitmaps.add("one")
            image.bitmaps.add("two")
            image.write(b"\7" * SIZE, 0)
            # Those that record are inconsistent after a kill.
            image.bitmaps.disable("one")
            image.bitmaps.disable("two")
            image.bitmaps.clear("one")
        shutil.copyfile("marked.qcow2", "done.qcow2")
        verb, *arguments = BRIEF[name]
        attrgetter(verb)(pyimago)("done.qcow2", *arguments)
        self.either = [self._state("marked.qcow2"), self._state("done.qcow2")]

    def _state(self, name: str) -> tuple[object, ...]:
        snapshots = [(snapshot.id, snapshot.name) for snapshot in pyimago.snapshot.list(name)]
        with pyimago.open(name, format="qcow2") as image:
            ranges = [[*image.bitmaps.ranges(bitmap)] for bitmap in ("one", "two")]
        return (snapshots, ranges, shown(name))

    def assert_done_or_not(self) -> None:
        """Nothing between, and it is done once more, or has been."""
        with pyimago.open("marked.qcow2", format="qcow2", write=True):
            pass
        assert_sound("marked.qcow2")
        assert self._state("marked.qcow2") in self.either
        with nullcontext() if self._state("marked.qcow2") == self.either[0] else suppress(ValueError):
            brief(self.name, pyimago)
        assert_sound("marked.qcow2")


@pytest.fixture(params=BRIEF)
def marked(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Marked:
    """In the working directory."""
    installed("qemu-img")
    monkeypatch.chdir(tmp_path)
    return Marked(request.param)


def test_what_is_brief_and_cancelled_is_done_or_not(marked: Marked) -> None:
    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(brief(marked.name, pyimago.aio))
        watching = once_written(lambda: loop.call_soon_threadsafe(task.cancel))
        with suppress(asyncio.CancelledError):
            await task
        watching.join()

    asyncio.run(cancelled())
    marked.assert_done_or_not()


def test_what_is_brief_and_interrupted_is_done_or_not(marked: Marked) -> None:
    watching = once_written(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come behind it
        brief(marked.name, pyimago)
        watching.join()
        time.sleep(10)
    watching.join()
    marked.assert_done_or_not()


def test_what_is_brief_and_killed_is_done_or_not(marked: Marked) -> None:
    done = subprocess.run([sys.executable, stopping.__file__, marked.name], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    marked.assert_done_or_not()


def test_what_is_brief_and_has_no_room_is_done_or_not(marked: Marked) -> None:
    with medium() as end_at, suppress(OSError):  # some finds room in the file
        end_at(Path("marked.qcow2").stat().st_size)
        brief(marked.name, pyimago)
    marked.assert_done_or_not()
