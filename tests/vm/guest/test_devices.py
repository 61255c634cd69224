"""Images on block devices, beside qemu-img."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.conftest import Qemu, pattern
from tests.face import Face
from tests.vm.guest.conftest import DISKS, GARBAGE, SIZE, run

import pyimago

MIB = 1 << 20
DISK = 12 * MIB


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk: zeroes, data from 4 MiB on with zeroes within it, zeroes."""
    path = tmp_path_factory.mktemp("source") / "source.raw"
    data = bytearray(pattern(1, 3 * MIB + 1234))
    data[MIB : MIB + 100_000] = bytes(100_000)
    with path.open("wb") as file:
        file.seek(4 * MIB)
        file.write(data)
        file.truncate(DISK)
    return path


def content(device: Path, length: int = SIZE) -> bytes:
    """The first bytes of a device."""
    with device.open("rb") as file:
        return file.read(length)


def is_soiled(rest: bytes) -> bool:
    """Whether these bytes are what was there before."""
    return rest == GARBAGE * (len(rest) // MIB) + GARBAGE[: len(rest) % MIB]


@pytest.mark.parametrize("into", ["new", "there", "unsparse"])
async def test_raw_on_a_device(face: Face, device: Path, source: Path, into: str) -> None:
    before = device.stat().st_ino
    if into == "there":
        async with face.open(device, format="raw", write=True) as target:
            await face.call("convert", source, target.raw, source_format="raw")
    else:
        await face.call(
            "convert", source, device, source_format="raw", sparse=0 if into == "unsparse" else None
        )
    assert device.stat().st_ino == before
    whole = content(device)
    assert whole[:DISK] == source.read_bytes()
    assert is_soiled(whole[DISK:])


@pytest.mark.parametrize("how", ["plain", "compressed", "direct"])
def test_qcow2_in_a_device(device: Path, source: Path, qemu: Qemu, how: str) -> None:
    pyimago.convert(source, device, source_format="raw", format="qcow2", compress=how == "compressed")
    qemu.assert_clean(device)
    qemu.img("compare", "-f", "qcow2", "-F", "raw", device, source)
    # Whatever was in the clusters before, nobody sees it.
    storage = pyimago.File.open_sync(
        pyimago.StorageOpenOptions(filename=device, write=True, direct=how == "direct")
    )
    with pyimago.open(storage, write=True, format="qcow2") as image:
        image.write(b"x" * 1000, 9 * MIB + 100)
        image.write(b"y" * 70_000, 4 * MIB - 7)
        image.discard(5 * MIB, 1 * MIB)
        image.write_zeroes(6 * MIB + 5, 100_000)
        assert image.pread(1100 + 100, 9 * MIB) == bytes(100) + b"x" * 1000 + bytes(100)
        shown = image.pread(DISK, 0)
    qemu.assert_clean(device)
    assert qemu.content(device) == shown


def test_qcow2_that_qemu_put_into_a_device(device: Path, source: Path, qemu: Qemu) -> None:
    qemu.img("convert", "-f", "raw", "-O", "qcow2", source, device)
    assert pyimago.compare(source, device, first_format="raw", second_format="qcow2").identical
    assert pyimago.check(device, format="qcow2").clean
    pyimago.convert(device, qemu.folder / "back.raw", source_format="qcow2", format="raw")
    assert (qemu.folder / "back.raw").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "luks"])
def test_a_new_image_on_a_device(device: Path, qemu: Qemu, kind: Any) -> None:
    options: dict[str, Any] = {"secret": b"s", "iter_time": 10} if kind == "luks" else {}
    pyimago.create(device, 10 * MIB, format=kind, overwrite=True, **options)
    info = pyimago.info(device)
    whole = content(device)
    if kind == "raw":
        # Its first sector cannot be taken for another format's any more; all else stays, as with qemu-img.
        assert (info.format, info.virtual_size) == ("raw", SIZE)
        assert whole[:512] == bytes(512)
        assert is_soiled(whole[512:] + GARBAGE[:512])
    else:
        assert info.format == kind
        assert (info.virtual_size == 10 * MIB) is (kind == "qcow2")
    if kind == "qcow2":
        qemu.assert_clean(device)
        assert qemu.content(device) == bytes(10 * MIB)


def test_what_a_device_cannot_hold_is_refused_before_it_is_touched(
    disk: Path, source: Path, qemu: Qemu
) -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("create", {"size": SIZE + 512, "format": "raw"}),
        ("create", {"size": 1 << 40, "format": "qcow2", "preallocation": "metadata"}),
        ("create", {"size": MIB, "format": "qcow2", "preallocation": "falloc"}),
        ("create", {"size": MIB, "format": "raw", "preallocation": "full"}),
        ("convert", {"format": "qcow2", "preallocation": "full"}),
        ("convert", {"format": "raw", "preallocation": "falloc"}),
    ]
    for verb, options in refused:
        arguments = (source, disk) if verb == "convert" else (disk,)
        named = {"source_format": "raw"} if verb == "convert" else {"overwrite": True}
        with pytest.raises((ValueError, OSError), match=str(disk)):
            getattr(pyimago, verb)(*arguments, **named, **options)
    with (qemu.folder / "big.raw").open("wb") as big:
        big.truncate(SIZE + 512)
    with pytest.raises(ValueError, match="the device has"):
        pyimago.convert(qemu.folder / "big.raw", disk, source_format="raw", format="raw")
    with pytest.raises(FileExistsError):
        pyimago.create(disk, MIB, format="raw")
    assert is_soiled(content(disk))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_random_requests(face: Face, device: Path, qemu: Qemu, kind: Any, direct: bool) -> None:
    size = 8 * MIB if kind == "qcow2" else SIZE
    if kind == "qcow2":
        pyimago.create(device, size, format="qcow2", overwrite=True)
    expected = bytearray(size) if kind == "qcow2" else bytearray(content(device))
    # What a discard leaves is the device's affair: those ranges are not compared.
    chance = random.Random(7)
    storage = pyimago.File.open_sync(pyimago.StorageOpenOptions(filename=device, write=True, direct=direct))
    async with face.open(storage, format=kind, write=True) as image:
        for step in range(60):
            at = chance.randrange(8 * MIB - 300_000)
            length = chance.randrange(1, 300_000)
            if chance.random() < 0.5:
                at, length = at // 4096 * 4096, (length // 4096 + 1) * 4096
            match step % 3:
                case 0:
                    data = chance.randbytes(length)
                    expected[at : at + length] = data
                    await image.write(data, at)
                case 1:
                    expected[at : at + length] = bytes(length)
                    await image.write_zeroes(at, length)
                case _:
                    assert await image.pread(length, at) == expected[at : at + length], step
        requests = [(bytearray(4096), chance.randrange(size // 4096) * 4096) for _ in range(200)]
        await image.read_many(requests)
        assert all(buf == expected[at : at + 4096] for buf, at in requests)
        await image.flush()
        await image.discard(4 * MIB + 3, 2 * MIB)
        expected[4 * MIB : 6 * MIB + 4096] = await image.pread(2 * MIB + 4096, 4 * MIB)
        await image.flush()
        await image.close()
    if kind == "raw":
        assert content(device) == expected
    else:
        qemu.assert_clean(device)
        assert qemu.content(device) == expected


def test_info_map_and_check_say_what_qemu_img_says(
    disk: Path, source: Path, qemu_img: Run, pyimago_command: Run
) -> None:
    qemu_img("convert", "-f", "raw", "-O", "qcow2", source, disk)
    for words in (["info"], ["info", "-f", "raw"], ["map", "-f", "qcow2"], ["check"]):
        theirs, ours = (tool(*words, "--output=json", disk) for tool in (qemu_img, pyimago_command))
        assert json.loads(ours.stdout) == json.loads(theirs.stdout), words
    for words in (["info"], ["info", "-f", "raw"], ["check"], ["measure", "-O", "qcow2"]):
        theirs, ours = (tool(*words, disk) for tool in (qemu_img, pyimago_command))
        assert ours.stdout == theirs.stdout, words


def test_drivers_are_taken_by_their_word(
    disk: Path, source: Path, qemu_img: Run, pyimago_command: Run
) -> None:
    for driver, path in (("file", disk), ("host_device", source)):
        words = ("info", "--image-opts", f"driver=raw,file.driver={driver},file.filename={path}")
        theirs, ours = (tool(*words, check=False) for tool in (qemu_img, pyimago_command))
        assert (ours.returncode, theirs.returncode) == (1, 1)
        assert f"'{driver}' driver requires" in ours.stderr
        assert f"'{driver}' driver requires" in theirs.stderr
    pyimago_command(
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        "-t",
        "none",
        source,
        f'json:{{"file": {{"driver": "host_device", "filename": "{disk}"}}}}',
    )
    pyimago_command(
        "dd", "-f", "host_device", "-O", "qcow2", f"if={disk}", "of=dd.qcow2", "bs=1M", "count=12"
    )
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "dd.qcow2", source)


def test_the_commands_take_a_device_where_qemu_img_does(
    disk: Path, source: Path, qemu: Qemu, pyimago_command: Run
) -> None:
    pyimago_command("create", "-f", "qcow2", disk, "10M")
    pyimago_command("resize", "-f", "qcow2", disk, "12M")
    pyimago_command("convert", "-n", "-f", "raw", "-O", "qcow2", source, disk)
    qemu.assert_clean(disk)
    qemu.img("compare", "-f", "raw", "-F", "qcow2", source, disk)
    pyimago_command("dd", "-f", "raw", "-O", "raw", f"if={source}", f"of={disk}", "bs=1M")
    failed = pyimago_command("resize", "-f", "raw", disk, "+1M", check=False)
    assert (failed.returncode, "length of its own" in failed.stderr) == (1, True)


async def test_an_overlay_of_a_device(face: Face, disk: Path, source: Path, qemu: Qemu) -> None:
    pyimago.convert(source, disk, source_format="raw", format="qcow2")
    top = qemu.folder / "top.qcow2"
    await face.call("create", top, backing=disk, backing_format="qcow2", format="qcow2")
    async with face.open(top, format="qcow2", write=True, implicit="allow") as image:
        await image.write(b"above", 4 * MIB + 10)
        await image.write(b"and here" * 1000, 11 * MIB)
        shown = await image.content()
    assert qemu.content(top) == shown
    await face.call("commit", top, format="qcow2", implicit="allow")
    qemu.assert_clean(disk)
    assert qemu.content(disk) == shown


@pytest.mark.parametrize("cluster", [4096, 65536])
def test_a_full_device_is_an_error_and_the_image_stays_sound(disk: Path, qemu: Qemu, cluster: int) -> None:
    pyimago.create(disk, 2 * SIZE, format="qcow2", cluster_size=cluster, overwrite=True)
    with pyimago.open(disk, write=True, format="qcow2") as image:
        at = 0
        with pytest.raises(OSError, match="No space"):  # noqa: PT012  which write it is nobody knows
            while at < 2 * SIZE:
                image.write(b"f" * MIB, at)
                at += MIB
        image.flush()
        assert at >= SIZE * 9 // 10
        assert image.pread(at, 0) == b"f" * at
    qemu.assert_clean(disk)


def test_locks_keep_both_out(disk: Path, source: Path, qemu_img: Run) -> None:
    qemu_img("create", "-f", "qcow2", disk, "1M")
    with pyimago.open(disk, write=True, format="qcow2"):
        refused = qemu_img("create", "-f", "qcow2", disk, "1M", check=False)
        assert "lock" in refused.stderr
        with pytest.raises(pyimago.ImageLockedError, match="this very process"):
            pyimago.create(disk, MIB, format="raw", overwrite=True)
        with pytest.raises(pyimago.ImageLockedError, match="this very process"):
            pyimago.convert(source, disk, source_format="raw", format="raw")
    qemu_img("info", disk)


def test_a_mounted_device_is_not_overwritten(tmp_path: Path, source: Path) -> None:
    image, folder = tmp_path / "file system", tmp_path / "mounted"
    image.write_bytes(bytes(SIZE))
    folder.mkdir()
    device = Path(run("losetup", "--find", "--show", image))
    run("mkfs.ext4", "-q", device)
    run("mount", device, folder)
    before = content(device)
    try:
        with pytest.raises(OSError, match=r"(?s)busy.*mounted"):
            pyimago.convert(source, device, source_format="raw", format="raw")
        with pytest.raises(OSError, match=r"(?s)busy.*mounted"):
            pyimago.create(device, MIB, format="qcow2", overwrite=True)
        assert content(device) == before
    finally:
        run("umount", folder)
        pyimago.create(device, MIB, format="qcow2", overwrite=True)
        run("losetup", "--detach", device)


def test_what_is_done_to_images_is_done_to_those_in_devices(disk: Path, source: Path, qemu: Qemu) -> None:
    pyimago.convert(source, disk, source_format="raw", format="qcow2", version=2)
    pyimago.amend(disk, format="qcow2", version=3)
    with pyimago.open(disk, format="qcow2", write=True) as image:
        image.snapshots.create("before")
        image.bitmaps.add("dirty")
        image.write(b"z" * 3 * MIB, 5 * MIB)
        image.resize(2 * SIZE)
    qemu.assert_clean(disk)
    with pyimago.open(disk, format="qcow2", write=True) as image:
        shown = image.pread(2 * SIZE, 0)
        image.snapshots.apply("before")
        assert image.pread(DISK, 0) == source.read_bytes()
        image.snapshots.delete("before")
        assert [bitmap.name for bitmap in image.bitmaps.list()] == ["dirty"]
    assert shown[5 * MIB : 8 * MIB] == b"z" * 3 * MIB
    qemu.assert_clean(disk)
    assert pyimago.check(disk, format="qcow2", repair="all").clean
    assert pyimago.measure(disk, source_format="qcow2", format="qcow2").required < SIZE
    top = qemu.folder / "top.qcow2"
    pyimago.create(top, format="qcow2", backing=disk, backing_format="qcow2")
    pyimago.rebase(top, None, format="qcow2", implicit="allow")
    assert qemu.content(top)[:DISK] == source.read_bytes()


def test_a_device_may_grow_under_an_open_image(tmp_path: Path, qemu: Qemu) -> None:
    file = tmp_path / "volume"
    file.write_bytes(GARBAGE * 4)
    device = Path(run("losetup", "--find", "--show", file))
    try:
        pyimago.create(device, 16 * MIB, format="qcow2", overwrite=True)
        with pyimago.open(device, format="qcow2", write=True) as image:
            with pytest.raises(OSError, match="No space"):
                image.write(b"1" * 8 * MIB, 0)
            with file.open("r+b") as volume:
                volume.seek(0, 2)
                volume.write(GARBAGE * 8)
            run("losetup", "--set-capacity", device)
            image.write(b"2" * 8 * MIB, 0)
            image.write_zeroes(MIB, 10_000)
        qemu.assert_clean(device)
        expected = b"2" * MIB + bytes(10_000) + b"2" * (7 * MIB - 10_000) + bytes(8 * MIB)
        assert qemu.content(device) == expected
    finally:
        run("losetup", "--detach", device)


def test_discards_reach_the_device(disk: Path) -> None:
    def discarded() -> int:
        """Sectors, of the kernel's counters."""
        return int(Path("/sys/block", disk.name, "stat").read_text().split()[13])

    before = discarded()
    with pyimago.open(disk, format="raw", write=True) as image:
        image.discard(MIB + 100, 4 * MIB)
    # The blocks of 4096 bytes that are discarded as a whole.
    assert discarded() - before == (4 * MIB - 4096) // 512
    pyimago.create(disk, SIZE // 2, format="qcow2", overwrite=True)
    before = discarded()
    with pyimago.open(disk, format="qcow2", write=True) as image:
        image.write(b"d" * 4 * MIB, 0)
        image.discard(0, 4 * MIB)
        image.flush()
    assert discarded() - before >= 4 * MIB // 512
    faulty = (DISKS / "faulty").resolve()
    with pyimago.open(faulty, format="raw", write=True) as image:
        image.discard(4 * MIB, MIB)


async def test_a_cancelled_conversion_leaves_no_image(disk: Path, source: Path, qemu: Qemu) -> None:
    task = asyncio.ensure_future(
        pyimago.aio.convert(source, disk, source_format="raw", format="qcow2", sparse=0, rate=2 * MIB)
    )
    await asyncio.sleep(1)
    assert pyimago.info(disk).format == "qcow2"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):  # what was cancelled may go on for 100 ms, and much longer where all is slow
        if pyimago.info(disk).format == "raw":
            break
        await asyncio.sleep(0.1)
    assert pyimago.info(disk).format == "raw"
    pyimago.create(disk, MIB, format="qcow2", overwrite=True)


def test_a_device_that_is_read_only(disk: Path, source: Path) -> None:
    run("blockdev", "--setro", disk)
    try:
        with pytest.raises(OSError, match=str(disk)):
            pyimago.convert(source, disk, source_format="raw", format="raw")
        with pyimago.open(disk, format="raw") as image:
            assert is_soiled(image.pread(MIB, 0))
    finally:
        run("blockdev", "--setrw", disk)


def test_sectors_that_cannot_be_read(qemu: Qemu, pyimago_command: Run) -> None:
    device = (DISKS / "faulty").resolve()
    bad = (0x1234 * 512, 10 * 512)
    with pytest.raises(OSError, match="Input/output error"):
        pyimago.convert(device, qemu.folder / "out.raw", source_format="raw", format="raw")
    done = pyimago.convert(device, qemu.folder / "out.raw", source_format="raw", format="raw", salvage=True)
    [(offset, length)] = done.unreadable
    # Through the page cache a whole page goes with each bad sector.
    assert offset <= bad[0]
    assert bad[0] + bad[1] <= offset + length <= bad[0] + bad[1] + 8192
    direct = pyimago.File.open_sync(pyimago.StorageOpenOptions(filename=device, direct=True))
    with pyimago.open(direct, format="raw") as image:
        assert pyimago.convert(image, qemu.folder / "out.raw", format="raw", salvage=True).unreadable == (
            bad,
        )
