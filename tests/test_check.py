"""`check` against `qemu-img check`: clean, leaky and corrupt images, on both faces."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import MakeImage, Qemu, pattern

import pyimago

if TYPE_CHECKING:
    from tests.face import Face

OFFSET = 0x00FF_FFFF_FFFF_FE00


def document(path: Path, *options: str) -> dict[str, Any]:
    """What `qemu-img check --output=json` prints; it exits with 2 or 3 where it finds something."""
    command = ["qemu-img", "check", "--output=json", *options, "-f", "qcow2", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Image:
    """A qcow2 image to be damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = bytearray(path.read_bytes())

    def word(self, at: int) -> int:
        return int(struct.unpack_from(">Q", self.bytes, at)[0])

    def entry(self, cluster: int) -> int:
        """Where the L2 entry of a cluster of the first table is."""
        return (self.word(self.word(40)) & OFFSET) + 8 * cluster

    def put(self, at: int, word: int) -> None:
        struct.pack_into(">Q", self.bytes, at, word)
        self.path.write_bytes(self.bytes)


def leak(image: Image) -> None:
    image.put(image.entry(3), 0)


def corrupt(image: Image) -> None:
    image.put(image.entry(3), image.word(image.entry(4)))


def reserved(image: Image) -> None:
    image.put(image.entry(3), image.word(image.entry(3)) | 4)


@pytest.fixture
def path(tmp_path: Path, qemu: Qemu) -> Path:
    image = tmp_path / "image.qcow2"
    qemu.img("create", "-q", "-f", "qcow2", image, "6M")
    qemu.io(image, "write -P 1 100k 500k", "write -c -P 2 2M 256k", "write -z 1M 128k", "write -P 3 5000k 5k")
    return image


@pytest.mark.parametrize("damage", [None, leak, corrupt, reserved])
async def test_the_document_is_that_of_qemu(face: Face, path: Path, damage: Any) -> None:
    if damage is not None:
        damage(Image(path))
    before = path.read_bytes()
    result = await face.call("check", path, format="qcow2", deep=True)
    assert result.to_dict() == document(path)
    assert result.clean == (damage is None)
    assert result.filename == str(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [leak, corrupt, reserved])
@pytest.mark.parametrize("repair", ["leaks", "all"])
async def test_a_repair_comes_to_what_qemu_comes_to(
    face: Face, path: Path, qemu: Qemu, damage: Any, repair: str
) -> None:
    damage(Image(path))
    content = qemu.content(path)
    peer = path.with_name("peer.qcow2")
    peer.write_bytes(path.read_bytes())
    result = await face.call("check", path, repair=repair)
    wanted = document(peer, "-r", repair)
    assert result.to_dict() | {"filename": str(peer)} == wanted
    assert (await face.call("check", path)).to_dict() == document(path)
    assert qemu.content(path) == content


async def test_findings_say_what_and_where(face: Face, path: Path) -> None:
    image = Image(path)
    entry = image.entry(3)
    reserved(image)
    result = await face.call("check", path)
    (finding,) = result.findings
    assert isinstance(finding, pyimago.Finding)
    assert (finding.kind, finding.severity) == ("reserved-bits", "corruption")
    assert (finding.offset, finding.guest_offset) == (entry, 3 << 16)


async def test_a_deep_check_unpacks(face: Face, path: Path) -> None:
    image = Image(path)
    host = image.word(image.entry(32)) & ((1 << 54) - 1)
    image.bytes[host : host + 64] = b"\xff" * 64
    image.path.write_bytes(image.bytes)
    assert (await face.call("check", path)).clean
    result = await face.call("check", path, deep=True)
    assert {finding.kind for finding in result.findings} == {"undecodable"}
    assert result.corruptions == len(result.findings) == 1
    assert result.findings[0].guest_offset == 2 << 20


async def test_progress_reaches_the_end_and_may_stop_it(face: Face, make_image: MakeImage) -> None:
    path = make_image(pattern(1, 1 << 20))
    told: list[tuple[int, int]] = []
    await face.call("check", path, deep=True, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)

    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await face.call("check", path, progress=stop)


async def test_an_image_in_use_is_checked_and_not_repaired(face: Face, path: Path) -> None:
    async with face.open(path):
        assert (await face.call("check", path)).clean
        with pytest.raises(pyimago.ImageLockedError):
            await face.call("check", path, repair="all")
    async with face.open(path, write=True):
        with pytest.raises(pyimago.ImageLockedError):
            await face.call("check", path)


async def test_a_dirty_image_is_repaired_by_opening_it_for_writing(
    face: Face, path: Path, qemu: Qemu
) -> None:
    image = Image(path)
    leak(image)
    image.put(72, image.word(72) | 1)
    result = await face.call("check", path)
    assert ("dirty", "info") in {(finding.kind, finding.severity) for finding in result.findings}
    async with face.open(path, write=True) as opened:
        await opened.write(b"written", 0)
    assert (await face.call("check", path)).findings == ()
    qemu.assert_clean(path)


async def test_what_cannot_be_checked_is_refused(face: Face, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(1 << 16))
    with pytest.raises(pyimago.UnsupportedFeatureError, match="raw"):
        await face.call("check", raw)
    with pytest.raises(pyimago.InvalidImageError):
        await face.call("check", raw, format="qcow2")
    with pytest.raises(ValueError, match="repair"):
        await face.call("check", raw, repair="some")
    with pytest.raises(FileNotFoundError):
        await face.call("check", tmp_path / "missing")
