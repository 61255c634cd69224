"""Encrypted images: opened, made, converted, their keys changed; and their secrets told to nobody."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import Qemu, pattern
from tests.face import Face, settle

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyimago._types import Format

SECRET = b"Sesam, oeffne dich"
SIZE = 1 << 20
#: Few iterations: tests try many secrets.
QUICK: dict[str, Any] = {"iterations": 1000}


def verbs(face: Face) -> Any:
    return pyimago if face.name == "sync" else pyimago.aio


@pytest.fixture(params=["qcow2", "luks"])
def format(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


@pytest.fixture
def path(tmp_path: Path, format: Format) -> Path:
    path = tmp_path / "image"
    pyimago.create(path, SIZE, format=format, encryption="luks", secret=SECRET, **QUICK)
    with pyimago.open(path, write=True, secret=SECRET) as image:
        image.write(pattern(1, 300_000), 70_001)
    return path


def opens(path: Path, secret: bytes | str) -> bool:
    try:
        with pyimago.open(path, secret=secret) as image:
            assert image.pread(300_000, 70_001) == pattern(1, 300_000)
    except pyimago.WrongSecretError:
        return False
    return True


async def test_every_kind_of_secret_opens(face: Face, path: Path, format: Format, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    kinds: list[Any] = [
        SECRET,
        bytearray(SECRET),
        memoryview(SECRET),
        SECRET.decode(),
        lambda: SECRET,
        SECRET.decode,
        tmp_path / "secret",
    ]
    for secret in kinds:
        async with face.open(path, write=True, secret=secret) as image:
            assert image.format == format
            assert await image.pread(300_000, 70_001) == pattern(1, 300_000)
            await image.write(b"again", 5)
            assert await image.pread(7, 4) == b"\0again\0" if format == "qcow2" else b"again"


async def test_many_small_reads_at_once(face: Face, path: Path) -> None:
    async with face.open(path, secret=SECRET) as image:
        requests = [(bytearray(4096), at) for at in range(70_001, 370_001 - 4096, 4096)]
        await image.read_many(requests)
        assert b"".join(buffer for buffer, _ in requests) == pattern(1, 4096 * len(requests))


async def test_wrong_and_missing_secrets(face: Face, path: Path) -> None:
    before = path.read_bytes()
    for options, says in [({"secret": b"sesam"}, "opens none"), ({}, "give the secret")]:
        with pytest.raises(pyimago.WrongSecretError, match=says) as raised:
            async with face.open(path, write=True, **options):
                pass
        assert raised.value.filename == str(path)
    with pytest.raises(ZeroDivisionError):
        async with face.open(path, secret=lambda: 1 // 0):
            pass
    with pytest.raises(FileNotFoundError) as missing:
        async with face.open(path, secret=path.with_name("nowhere")):
            pass
    assert missing.value.filename == str(path.with_name("nowhere"))
    for bad in (17, object(), lambda: 17):
        with pytest.raises(TypeError, match="a secret is"):
            async with face.open(path, secret=bad):
                pass
    assert path.read_bytes() == before


async def test_amend_has_the_words_of_qemu_for_key_slots(face: Face, path: Path) -> None:
    def active() -> list[int]:
        return [slot.number for slot in pyimago.luks.key_slots(path) if slot.active]

    await face.call(
        "amend", path, secret=SECRET, keyslot_state="active", new_secret="two", keyslot=6, **QUICK
    )
    assert active() == [0, 6]
    assert opens(path, SECRET)
    assert opens(path, "two")
    before = path.read_bytes()
    refused: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"keyslot_state": "inactive", "keyslot": 3}, ValueError),
        ({"keyslot_state": "inactive", "keyslot": 2**40}, ValueError),
        ({"keyslot_state": "inactive", "keyslot": 6, "old_secret": SECRET}, pyimago.WrongSecretError),
        ({"keyslot_state": "active", "new_secret": "three"}, pyimago.WrongSecretError),
        ({"keyslot_state": "active", "new_secret": "three", "secret": b"no"}, pyimago.WrongSecretError),
        ({"keyslot_state": "active", "new_secret": "three", "secret": SECRET, "keyslot": 6}, ValueError),
    ]
    for changes, error in refused:
        with pytest.raises(error):
            await face.call("amend", path, **changes)
        assert path.read_bytes() == before
    await face.call("amend", path, keyslot_state="inactive", old_secret=SECRET)
    assert active() == [6]
    with pytest.raises(ValueError, match="lost for good"):
        await face.call("amend", path, keyslot_state="inactive", keyslot=6)
    await face.call("amend", path, keyslot_state="inactive", keyslot=6, force=True)
    assert active() == []


async def test_numbers_out_of_range_are_a_value_error(face: Face, path: Path) -> None:
    keys: Any = pyimago.luks if face.name == "sync" else pyimago.aio.luks
    for number in (-1, 2**32, 2**70):
        for changes in ({"slot": number}, {"iterations": number}, {"iter_time": number}):
            with pytest.raises(ValueError, match="out of range"):
                await settle(keys.add_key(path, secret=SECRET, new_secret=b"x", **changes))
        with pytest.raises(ValueError, match="out of range"):
            await settle(keys.erase_key(path, slot=number))
    with pytest.raises(ValueError, match="erased already"):
        await settle(keys.erase_key(path, slot=3))


async def test_a_bare_image_grows_and_shrinks_with_its_file(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "bare"
    pyimago.create(path, SIZE, format="luks", secret=SECRET, **QUICK)
    header = path.stat().st_size - SIZE
    async with face.open(path, write=True, secret=SECRET) as image:
        await image.write(pattern(1, 300_000), 70_001)
        await image.resize(2 * SIZE + 1)
        assert image.size == 2 * SIZE + 512
        await image.resize(2 * SIZE)
        await image.write(b"at the end", 2 * SIZE - 10)
        await image.resize(3 * SIZE, preallocation="full")
        assert await image.pread(SIZE, 2 * SIZE) == bytes(SIZE)
        assert await image.pread(10, 2 * SIZE - 10) == b"at the end"
        await image.resize(SIZE)
    assert path.stat().st_size == header + SIZE
    assert opens(path, SECRET)


async def test_no_message_shows_a_secret(face: Face, path: Path, tmp_path: Path) -> None:
    """Not the right one, nor a wrong one, nor one of the wrong type; whatever fails."""
    marker = "Xyzzy-Plugh"
    attempts: list[Callable[[], Any]] = [
        lambda: verbs(face).create(tmp_path / "a", 1, format="raw", secret=marker),
        lambda: verbs(face).create(tmp_path / "a", 1, format="luks", secret=marker, iterations=1),
        lambda: verbs(face).create(tmp_path / "a", 1, format="qcow2", secret=marker),
        lambda: verbs(face).create(path, 1, format="luks", secret=marker, **QUICK),
        lambda: verbs(face).convert(path, tmp_path / "b", source_secret=marker),
        lambda: verbs(face).luks.add_key(path, secret=marker, new_secret=marker),
        lambda: verbs(face).luks.erase_key(path, secret=marker),
        lambda: verbs(face).luks.add_key(path, secret=SECRET, new_secret=marker + "\udcff"),
        lambda: verbs(face).compare(path, path, first_secret=marker),
        lambda: verbs(face).hash(path, secret=marker),
        lambda: verbs(face).open(path, secret=[marker]).__aenter__(),
    ]
    for attempt in attempts:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each its own
            await settle(attempt())
        text = "".join(traceback.format_exception_only(raised.value)) + repr(raised.value)
        assert marker not in text
        assert "Sesam" not in text
    async with face.open(path, secret=SECRET) as image:
        assert "Sesam" not in repr(image.raw) + repr(pyimago.info(path)) + str(image.raw)


async def test_convert_compare_and_hash(face: Face, path: Path, format: Format, tmp_path: Path) -> None:
    flat, locked = tmp_path / "flat", tmp_path / "locked"
    await settle(verbs(face).convert(path, flat, source_secret=SECRET))
    other: Format = "luks" if format == "qcow2" else "qcow2"
    await settle(
        verbs(face).convert(flat, locked, format=other, encryption="luks", secret=lambda: b"2", **QUICK)
    )
    assert flat.read_bytes()[70_001:370_001] == pattern(1, 300_000)
    assert pattern(1, 300_000)[:64] not in locked.read_bytes()
    compared = await settle(verbs(face).compare(path, locked, first_secret=SECRET, second_secret="2"))
    assert compared.difference is None
    hashes = [
        await settle(verbs(face).hash(flat)),
        await settle(verbs(face).hash(path, secret=SECRET)),
        await settle(verbs(face).hash(locked, secret=b"2")),
    ]
    assert len(set(hashes)) == 1


async def test_keys_are_added_changed_and_erased(face: Face, path: Path) -> None:
    luks = verbs(face).luks
    active = [slot.number for slot in await settle(luks.key_slots(path)) if slot.active]
    assert active == [0]
    assert await settle(luks.add_key(path, secret=SECRET, new_secret="second", **QUICK)) == 1
    assert await settle(luks.add_key(path, secret="second", new_secret="sixth", slot=5, **QUICK)) == 5
    assert all(opens(path, secret) for secret in (SECRET, "second", "sixth"))
    assert await settle(luks.change_key(path, secret=SECRET, new_secret="first", **QUICK)) == 2
    assert [opens(path, secret) for secret in (SECRET, "first")] == [False, True]
    assert await settle(luks.erase_key(path, secret="second")) == [1]
    assert await settle(luks.erase_key(path, slot=5)) == [5]
    assert [opens(path, secret) for secret in ("first", "second", "sixth")] == [True, False, False]
    slots = await settle(luks.key_slots(path))
    assert [(slot.number, slot.iterations, slot.stripes) for slot in slots if slot.active] == [
        (2, 1000, 4000)
    ]
    with pytest.raises(ValueError, match="lost for good"):
        await settle(luks.erase_key(path, secret="first"))
    with pytest.raises(ValueError, match="key slot 2 is active"):
        await settle(luks.add_key(path, secret="first", new_secret="x", slot=2, **QUICK))
    with pytest.raises(ValueError, match="no key slot 8"):
        await settle(luks.erase_key(path, slot=8))
    with pytest.raises(ValueError, match="either a secret or"):
        await settle(luks.erase_key(path))
    assert await settle(luks.erase_key(path, slot=2, force=True)) == [2]
    assert not opens(path, "first")


async def test_eight_keys_and_no_more(face: Face, path: Path) -> None:
    luks = verbs(face).luks
    for number in range(1, 8):
        await settle(luks.add_key(path, secret=SECRET, new_secret=str(number), **QUICK))
    for verb in (luks.add_key, luks.change_key):
        with pytest.raises(ValueError, match="all eight"):
            await settle(verb(path, secret=SECRET, new_secret="more", **QUICK))
    assert opens(path, "7")


async def test_keys_of_an_image_in_use_or_without_any(face: Face, path: Path, tmp_path: Path) -> None:
    with pyimago.open(path, secret=SECRET), pytest.raises(pyimago.ImageLockedError):
        await settle(verbs(face).luks.add_key(path, secret=SECRET, new_secret="x", **QUICK))
    plain = tmp_path / "plain"
    pyimago.create(plain, SIZE, format="qcow2")
    calls: list[Callable[[], Any]] = [
        lambda: verbs(face).luks.key_slots(plain),
        lambda: verbs(face).luks.add_key(plain, secret="a", new_secret="b"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not encrypted with LUKS"):
            await settle(call())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encryption": "rot13"}, "encryption is 'luks' or 'aes'"),
        ({"encryption": "aes"}, "needs a secret"),
        ({"encryption": "aes", "secret": ""}, "empty"),
        ({"encryption": "aes", "secret": "x", "hash_alg": "sha256"}, "hash_alg is chosen for LUKS"),
        ({"encryption": "aes", "secret": "x", "version": 2, "preallocation": "full"}, "version 3"),
        ({"encryption": "luks"}, "needs a secret"),
        ({"encryption": "luks", "secret": ""}, "empty"),
        ({"secret": "x"}, "without encryption"),
        ({"encryption": "luks", "secret": "x", "cipher_alg": "des"}, "cipher_alg"),
        ({"encryption": "luks", "secret": "x", "cipher_alg": "aes-192", "cipher_mode": "cbc"}, "192 bits"),
        ({"encryption": "luks", "secret": "x", "cipher_mode": "gcm"}, "cipher_mode"),
        ({"encryption": "luks", "secret": "x", "ivgen_hash_alg": "sha256"}, "goes with ivgen_alg='essiv'"),
        ({"encryption": "luks", "secret": "x", "ivgen_alg": "essiv", "ivgen_hash_alg": "sha1"}, "20 bytes"),
        ({"encryption": "luks", "secret": "x", "hash_alg": "crc32"}, "hash_alg"),
        ({"encryption": "luks", "secret": "x", "iterations": 10}, "too few"),
        ({"encryption": "luks", "secret": "x", "iterations": 2**32 - 1}, "rounds"),
        ({"encryption": "luks", "secret": "x", "iterations": 1000, "iter_time": 1}, "exclude"),
        ({"encryption": "luks", "secret": "x", "data_file": "d", "data_file_raw": True}, "raw data file"),
    ],
)
async def test_what_cannot_be_made_is_refused(
    face: Face, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        await settle(verbs(face).create(tmp_path / "image", SIZE, format="qcow2", **options))
    assert list(tmp_path.iterdir()) == []


async def test_aes_of_qcow2_is_made_read_and_written(face: Face, tmp_path: Path, qemu: Qemu) -> None:
    path = tmp_path / "image"
    await settle(verbs(face).create(path, SIZE, format="qcow2", encryption="aes", secret="sesame"))
    async with face.open(path, write=True, secret=lambda: b"sesame") as image:
        await image.write(pattern(1, 300_000), 70_001)
        await image.write_zeroes(100_000, 1000)
        requests = [(bytearray(4096), at) for at in range(101_000, 370_001 - 4096, 4096)]
        await image.read_many(requests)
        assert (
            b"".join(buffer for buffer, _ in requests) == pattern(1, 300_000)[30_999:][: 4096 * len(requests)]
        )
    wanted = bytearray(SIZE)
    wanted[70_001:370_001] = pattern(1, 300_000)
    wanted[100_000:101_000] = bytes(1000)
    node = f"driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename={path}"
    flat = tmp_path / "flat"
    flat.write_bytes(wanted)
    qemu.img(
        *("compare", "--object", "secret,id=s,data=sesame", "--image-opts", node),
        f"driver=raw,file.filename={flat}",
    )
    with pytest.raises(pyimago.WrongSecretError, match="give the secret"):
        async with face.open(path):
            pass
    async with face.open(path, secret="barley") as noise:
        # Nothing tells that this secret is wrong.
        assert await noise.pread(3000, 80_000) != bytes(wanted[80_000:83_000])
        assert await noise.pread(1000, 500_000) == bytes(1000)
    assert pyimago.info(path).encrypted
    with pytest.raises(ValueError, match="not encrypted with LUKS"):
        await settle(verbs(face).luks.key_slots(path))
    with pytest.raises(ValueError, match="qcow2's own"):
        await settle(verbs(face).create(tmp_path / "disk", SIZE, format="luks", encryption="aes", secret="x"))


async def test_a_staged_opening_takes_the_secret(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "image"
    pyimago.create(path, SIZE, format="qcow2", encryption="luks", secret=SECRET, **QUICK)
    if face.name == "sync":
        with pyimago.SyncFormatAccess(pyimago.Qcow2.open_path_sync(path, secret=SECRET)) as image:
            assert image.pread(10, 0) == bytes(10)
        with pytest.raises(pyimago.WrongSecretError, match="was not unlocked"):
            pyimago.SyncFormatAccess(pyimago.Qcow2.open_path_sync(path))
    else:
        file = await pyimago.File.open(pyimago.StorageOpenOptions(filename=path))
        async with pyimago.FormatAccess(await pyimago.Qcow2.open_image(file, secret=SECRET)) as awaited:
            assert await awaited.pread(10, 0) == bytes(10)
        with pytest.raises(pyimago.WrongSecretError):
            await pyimago.Qcow2.open_path(path, secret=b"x")


async def test_extents_name_no_place(face: Face, path: Path) -> None:
    async with face.open(path, secret=SECRET) as image:
        data = [extent for extent in await image.extents() if extent.data]
    assert data
    assert all(extent.host_offset is None and extent.host_file is None for extent in data)


# With QEMU


def node(path: Path, format: Format) -> str:
    prefix = "encrypt." if format == "qcow2" else ""
    return f"driver={format},{prefix}key-secret=s,file.filename={path}"


def secret(name: str, text: str) -> list[str]:
    return ["--object", f"secret,id={name},data={text}"]


def test_info_is_that_of_qemu(path: Path, qemu: Qemu) -> None:
    wanted = json.loads(qemu.img("info", "--output=json", path))
    found = pyimago.info(path).to_dict()
    for document in (wanted, found):
        for facts in (document, document["children"][0]["info"]):
            facts.pop("actual-size")
    assert found == wanted


async def test_qemu_opens_with_added_keys(face: Face, path: Path, format: Format, qemu: Qemu) -> None:
    await settle(verbs(face).luks.add_key(path, secret=SECRET, new_secret="second", **QUICK))
    await settle(verbs(face).luks.change_key(path, secret=SECRET, new_secret="first", **QUICK))
    for text in ("second", "first"):
        qemu.run("qemu-io", *secret("s", text), "--image-opts", "-r", "-c", "read 0 64k", node(path, format))
    with pytest.raises(AssertionError, match="cannot unlock any keyslot"):
        qemu.run(
            "qemu-io",
            *secret("s", SECRET.decode().replace(",", ",,")),
            "--image-opts",
            "-r",
            node(path, format),
        )


def test_keys_that_qemu_adds_open_here(path: Path, format: Format, qemu: Qemu) -> None:
    pyimago.luks.add_key(path, secret=SECRET, new_secret="plain", **QUICK)
    prefix = "encrypt." if format == "qcow2" else ""
    options = f"{prefix}state=active,{prefix}new-secret=n,{prefix}iter-time=10"
    arguments = [*secret("s", "plain"), *secret("n", "of QEMU"), "--image-opts", "-o", options]
    qemu.img("amend", *arguments, node(path, format))
    assert opens(path, "of QEMU")
    assert pyimago.luks.erase_key(path, secret="plain") == [1]
    assert opens(path, "of QEMU")
