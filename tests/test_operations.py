"""What is done with whole images: comparing them, hashing them."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.conftest import MakeImage, let_go, pattern

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

    from tests.face import Face

SIZE = 5 << 20
CONTENT = pattern(3, 1 << 20) + bytes(3 << 20) + pattern(4, 1 << 20)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(CONTENT)
    return path


async def test_equal_content_compares_and_hashes_equal_in_any_format(
    face: Face, make_image: MakeImage, raw: Path
) -> None:
    qcow2 = make_image(CONTENT)
    compared = await face.call("compare", raw, qcow2, first_format="raw")
    assert compared == pyimago.Comparison(difference=None, offset=None, sizes_differ=False)
    assert compared.identical
    digest = await face.call("hash", qcow2)
    assert digest == await face.call("hash", raw, format="raw")
    assert len(bytes.fromhex(digest)) == 32


async def test_the_first_difference_is_told(face: Face, make_image: MakeImage, raw: Path) -> None:
    changed = bytearray(CONTENT)
    changed[2_000_000] = changed[4_700_000] = 1
    other = make_image(bytes(changed))
    compared = await face.call("compare", raw, other)
    assert (compared.identical, compared.difference) == (False, "content")
    assert compared.offset == 2_000_000 // 512 * 512
    assert await face.call("hash", raw) != await face.call("hash", other)


async def test_a_longer_disk_is_equal_if_its_rest_is_zeroes(
    face: Face, make_image: MakeImage, raw: Path
) -> None:
    longer = make_image(CONTENT + bytes(4096))
    compared = await face.call("compare", raw, longer)
    assert compared.identical
    assert compared.sizes_differ
    assert (await face.call("compare", raw, longer, strict=True)).difference == "size"


async def test_strict_counts_what_is_allocated(face: Face, make_image: MakeImage, raw: Path) -> None:
    compared = await face.call("compare", raw, make_image(CONTENT), strict=True)
    assert (compared.difference, compared.offset) == ("status", 1 << 20)


@pytest.mark.parametrize(("verb", "options"), [("hash", {}), ("measure", {"format": "qcow2"}), ("map", {})])
async def test_progress_goes_from_nothing_to_everything(
    face: Face, raw: Path, verb: str, options: dict[str, str]
) -> None:
    calls: list[tuple[int, int]] = []
    await face.call(verb, raw, progress=lambda done, total: calls.append((done, total)), **options)
    assert calls[0] == (0, SIZE)
    assert calls[-1] == (SIZE, SIZE)
    assert calls == sorted(calls)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_what_sets_space_aside_tells_it_and_is_undone_where_it_is_ended(
    face: Face, tmp_path: Path, format: Literal["raw", "qcow2"]
) -> None:
    path, size = tmp_path / "image", 8 << 20
    calls: list[tuple[int, int]] = []

    def told(done: int, total: int) -> None:
        calls.append((done, total))

    def half(done: int, total: int) -> None:
        if total and 2 * done >= total:
            raise RuntimeError("half is enough")

    with pytest.raises(RuntimeError, match="half is enough"):
        await face.call("create", path, size, format=format, preallocation="full", progress=half)
    assert not list(tmp_path.iterdir())
    await face.call("create", path, size, format=format, preallocation="full", progress=told)
    assert calls[-1][0] == calls[-1][1] >= size
    assert path.stat().st_blocks * 512 >= size
    calls.clear()
    with pytest.raises(RuntimeError, match="half is enough"):
        await face.call("resize", path, 2 * size, format=format, preallocation="full", progress=half)
    assert pyimago.info(path, format=format).virtual_size == size
    await face.call("resize", path, 2 * size, format=format, preallocation="full", progress=told)
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)
    calls.clear()
    await face.call("resize", path, 512, format=format, shrink=True, progress=told)
    assert format == "raw" or calls[-1][0] == calls[-1][1] > 0


async def test_what_progress_raises_ends_it(face: Face, raw: Path) -> None:
    def enough(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total} is enough")

    with pytest.raises(RuntimeError, match=f"0 of {SIZE} is enough"):
        await face.call("compare", raw, raw, progress=enough)


async def test_a_cancelled_task_ends_the_operation(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        for megabyte in range(256):
            file.write(pattern(megabyte, 1 << 20))
    begun, ended = threading.Event(), threading.Event()
    last = [0]

    def progress(done: int, total: int) -> None:
        begun.set()
        last[0] = done
        if done == total:
            ended.set()
        time.sleep(0.005)

    task = asyncio.create_task(pyimago.aio.hash(path, format="raw", progress=progress))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await let_go(path, "raw")
    assert not ended.is_set()
    assert last[0] < 256 << 20


async def test_a_rebase_keeps_what_a_guest_sees(face: Face, make_image: MakeImage, tmp_path: Path) -> None:
    make_image(CONTENT, "old.qcow2")
    other = bytearray(CONTENT)
    other[70_000:90_000] = bytes(20_000)
    make_image(bytes(other), "new.qcow2")
    top = tmp_path / "top.qcow2"
    pyimago.create(top, format="qcow2", backing="old.qcow2", backing_format="qcow2")
    for backing in ("new.qcow2", None, "old.qcow2"):
        options = {"backing_format": "qcow2"} if backing else {}
        await face.call("rebase", top, backing, **options)
        async with face.open(top) as image:
            assert await image.content() == CONTENT
        assert pyimago.info(top).backing_filename == backing


async def test_an_unsafe_rebase_looks_at_nothing(face: Face, make_image: MakeImage, tmp_path: Path) -> None:
    make_image(CONTENT, "old.qcow2")
    top = tmp_path / "top.qcow2"
    pyimago.create(top, format="qcow2", backing="old.qcow2", backing_format="qcow2")
    await face.call("rebase", top, "moved/old.qcow2", backing_format="qcow2", unsafe=True)
    assert pyimago.info(top).backing_filename == "moved/old.qcow2"
    with pytest.raises(FileNotFoundError):
        pyimago.open(top)


@pytest.mark.parametrize("unsafe", [False, True])
async def test_an_image_is_not_its_own_backing_file(
    face: Face, make_image: MakeImage, tmp_path: Path, *, unsafe: bool
) -> None:
    path = make_image(CONTENT, "image.qcow2")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="its own backing file"):
        await face.call("rebase", path, "./image.qcow2", backing_format="qcow2", unsafe=unsafe)
    top = tmp_path / "top.qcow2"
    pyimago.create(top, format="qcow2", backing="image.qcow2", backing_format="qcow2")
    with pytest.raises(pyimago.InvalidImageError, match="comes back to this file"):
        await face.call("rebase", path, "top.qcow2", backing_format="qcow2")
    assert path.read_bytes() == before


def test_results_can_be_sent_to_another_process(make_image: MakeImage, raw: Path, tmp_path: Path) -> None:
    path = make_image(CONTENT)
    pyimago.snapshot.create(path, "a")
    pyimago.bitmap.add(path, "b", enabled=False)
    results: list[Any] = [
        *pyimago.map(path),
        *pyimago.snapshot.list(path),
        *pyimago.bitmap.list(path),
        pyimago.info(path),
        pyimago.check(path),
        pyimago.compare(path, raw),
        pyimago.convert(path, tmp_path / "out"),
        pyimago.measure(path),
        pyimago.bench(path, count=1),
        *pyimago.luks.key_slots(encrypted(tmp_path)),
        pyimago.Snapshot("1", "x", vm_clock_sec=5, vm_clock_nsec=6, icount=7),
        pyimago.Bitmap("x", 512, ["in-use", "auto"], None),
        pyimago.Extent(0, 512, True, False, True, True, 3, "/a\udcff\"'", 7),
    ]
    for result in results:
        for other in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
            assert other == result
            assert hash(other) == hash(result)
            assert repr(other) == repr(result)
            if not isinstance(result, (pyimago.Comparison, pyimago.Converted, pyimago.KeySlot)):
                assert other.to_dict() == result.to_dict()
    assert {"Extent", "Snapshot", "Bitmap", "ImageInfo"} < {type(result).__name__ for result in results}


async def test_the_extents_of_a_map_are_nothing_that_the_garbage_collector_goes_through(
    face: Face, make_image: MakeImage
) -> None:
    found = await face.call("map", make_image(CONTENT))
    assert found
    assert not any(gc.is_tracked(extent) for extent in found)


def encrypted(folder: Path) -> Path:
    path = folder / "encrypted.luks"
    pyimago.create(path, 512, format="luks", secret="s", iterations=1000)
    return path


async def test_a_raw_disk_that_no_file_can_be_is_refused(face: Face, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="end of what a file can be"):
        await face.call("create", tmp_path / "raw", 2**63, format="raw")
    assert not (tmp_path / "raw").exists()
