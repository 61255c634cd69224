"""What is refused: with which exception, which words, and no partial effect."""

from __future__ import annotations

import asyncio
import copy
import errno
import gc
import io
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import MakeImage, Qemu, pattern

import pyimago

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.face import Face, Image

SIZE = 200_192
CONTENT = pattern(5, SIZE)


@pytest.fixture
def path(make_image: MakeImage) -> Path:
    return make_image(CONTENT)


OUT_OF_RANGE: dict[str, Callable[[Image], Awaitable[object]]] = {
    "read": lambda image: image.read(bytearray(b"x" * 101), SIZE - 100),
    "readv": lambda image: image.readv([bytearray(100), bytearray(1)], SIZE - 100),
    "pread": lambda image: image.pread(1, SIZE),
    "pread far": lambda image: image.pread(1, 1 << 62),
    "read_many": lambda image: image.read_many([(bytearray(10), 0), (bytearray(10), SIZE - 9)]),
    "write": lambda image: image.write(b"x" * 101, SIZE - 100),
    "writev": lambda image: image.writev([b"x" * 100, b"x"], SIZE - 100),
    "write_many": lambda image: image.write_many([(b"x", 0), (b"xx", SIZE - 1)]),
    "write_zeroes": lambda image: image.write_zeroes(0, SIZE + 1),
    "discard": lambda image: image.discard(SIZE - 1, 2),
    "extents": lambda image: image.extents(0, SIZE + 1),
    "negative read": lambda image: image.read(bytearray(1), -1),
    "negative write": lambda image: image.write(b"x", -1),
    "negative length": lambda image: image.pread(-1, 0),
    "negative discard": lambda image: image.discard(0, -512),
}


@pytest.mark.parametrize("what", OUT_OF_RANGE)
async def test_past_the_end_or_negative_is_a_value_error_without_effect(
    face: Face, path: Path, what: str
) -> None:
    async with face.open(path, write=True) as image:
        with pytest.raises(ValueError, match=r"end|are not negative"):
            await OUT_OF_RANGE[what](image)
        assert await image.content() == CONTENT


async def test_a_refused_read_leaves_the_buffer_alone(face: Face, path: Path) -> None:
    buf = bytearray(b"untouched")
    async with face.open(path) as image:
        with pytest.raises(ValueError, match="end"):
            await image.read(buf, SIZE - 1)
    assert buf == b"untouched"


WRONG_TYPES: dict[str, Callable[[Image], Awaitable[object]]] = {
    "read into bytes": lambda image: image.read(b"constant", 0),
    "read into str": lambda image: image.read("text", 0),
    "read into None": lambda image: image.read(None, 0),
    "read into a read-only view": lambda image: image.read(memoryview(bytearray(4)).toreadonly(), 0),
    "offset of a float": lambda image: image.read(bytearray(1), 1.0),
    "offset of a str": lambda image: image.read(bytearray(1), "0"),
    "write of a str": lambda image: image.write("text", 0),
    "write of an int": lambda image: image.write(5, 0),
    "readv of one buffer": lambda image: image.readv(5, 0),
}


@pytest.mark.parametrize("what", WRONG_TYPES)
async def test_wrong_types_are_type_errors(face: Face, path: Path, what: str) -> None:
    async with face.open(path, write=True) as image:
        with pytest.raises(TypeError):
            await WRONG_TYPES[what](image)
        assert await image.content() == CONTENT


async def test_memory_with_gaps_is_refused(face: Face, path: Path) -> None:
    buf = bytearray(20)
    async with face.open(path) as image:
        with pytest.raises((TypeError, ValueError), match="contiguous"):
            await image.read(memoryview(buf)[::2], 0)
    assert buf == bytes(20)


USES: dict[str, Callable[[Image], Awaitable[object]]] = {
    "read": lambda image: image.read(bytearray(1), 0),
    "pread": lambda image: image.pread(1, 0),
    "write": lambda image: image.write(b"x", 0),
    "write_zeroes": lambda image: image.write_zeroes(0, 1),
    "extents": lambda image: image.extents(),
    "flush": lambda image: image.flush(),
}


@pytest.mark.parametrize("what", USES)
async def test_a_closed_image_is_a_value_error_that_says_so(face: Face, path: Path, what: str) -> None:
    async with face.open(path, write=True) as image:
        pass
    with pytest.raises(ValueError, match="closed"):
        await USES[what](image)


@pytest.mark.parametrize("what", ["write", "write_zeroes", "discard", "writev", "write_many"])
async def test_a_read_only_image_is_not_written(face: Face, path: Path, what: str) -> None:
    writes: dict[str, Callable[[Image], Awaitable[object]]] = {
        "write": lambda image: image.write(b"x", 0),
        "writev": lambda image: image.writev([b"x"], 0),
        "write_many": lambda image: image.write_many([(b"x", 0)]),
        "write_zeroes": lambda image: image.write_zeroes(0, 512),
        "discard": lambda image: image.discard(0, 512),
    }
    before = path.read_bytes()
    async with face.open(path) as image:
        with pytest.raises(io.UnsupportedOperation, match="read"):
            await writes[what](image)
    assert path.read_bytes() == before


async def test_a_missing_file_is_the_systems_error_with_its_name(face: Face, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with face.open(tmp_path / "none.qcow2"):
            pass
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "none.qcow2")


async def test_a_folder_is_the_systems_error(face: Face, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"directory|device|supported"):
        async with face.open(tmp_path):
            pass


async def test_garbage_is_no_qcow2_image(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "garbage.qcow2"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(pyimago.InvalidImageError, match=r"garbage\.qcow2"):
        async with face.open(path, format="qcow2"):
            pass


async def test_a_cut_header_is_refused(face: Face, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(pyimago.InvalidImageError, match=r"image\.qcow2"):
        async with face.open(path, format="qcow2"):
            pass


async def test_an_unknown_incompatible_feature_is_refused_by_name(face: Face, path: Path) -> None:
    image = bytearray(path.read_bytes())
    image[72:80] = (1 << 40).to_bytes(8, "big")
    path.write_bytes(image)
    with pytest.raises(pyimago.UnsupportedFeatureError, match="40"):
        async with face.open(path, write=True):
            pass
    assert path.read_bytes() == image


async def test_an_encrypted_image_without_its_secret_is_refused_before_a_byte_changes(
    face: Face, tmp_path: Path, qemu: Qemu
) -> None:
    path = tmp_path / "secret.qcow2"
    secret = "secret,id=s,data=hunter2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu.img("create", "-q", "-f", "qcow2", "--object", secret, "-o", options, path, "1M")
    before = path.read_bytes()
    with pytest.raises(pyimago.WrongSecretError, match="give the secret"):
        async with face.open(path, write=True):
            pass
    assert path.read_bytes() == before


async def test_a_backing_file_elsewhere_is_denied_unless_allowed(
    face: Face, make_image: MakeImage, tmp_path: Path
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    base = shutil.move(make_image(CONTENT), outside / "base.qcow2")
    top = inside / "top.qcow2"
    pyimago.create(top, SIZE, format="qcow2", backing=base, backing_format="qcow2")
    with pytest.raises(pyimago.ImplicitOpenDeniedError, match=r"base\.qcow2"):
        async with face.open(top):
            pass
    asked: list[str] = []

    def allow(path: Any, *_: object) -> bool:
        asked.append(str(path))
        return True

    for implicit in ("allow", allow):
        async with face.open(top, implicit=implicit) as image:
            assert await image.content() == CONTENT
    assert [name.endswith("base.qcow2") for name in asked] == [True]
    with pytest.raises(pyimago.ImplicitOpenDeniedError):
        async with face.open(top, implicit="deny"):
            pass


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_gate_that_would_have_to_be_awaited_allows_nothing(face: Face, tmp_path: Path) -> None:
    async def gate(name: str, kind: str) -> bool:
        return False

    top = tmp_path / "top.qcow2"
    pyimago.create(tmp_path / "base.raw", 512, format="raw")
    pyimago.create(top, format="qcow2", backing="base.raw", backing_format="raw")
    with pytest.raises(TypeError, match="would have to be awaited"):
        async with face.open(top, implicit=gate):
            pass


async def test_a_loop_in_the_chain_is_refused(face: Face, tmp_path: Path, qemu: Qemu) -> None:
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    for path, other in ((one, two), (two, one)):
        qemu.img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, path, "1M")
    with pytest.raises(pyimago.ImagoError, match=r"(one|two)\.qcow2"):
        async with face.open(one):
            pass


async def test_an_image_open_for_writing_is_locked(face: Face, path: Path) -> None:
    async with face.open(path, write=True):
        with pytest.raises(pyimago.ImageLockedError, match=r"image\.qcow2"):
            async with face.open(path, write=True):
                pass
    async with face.open(path, write=True):
        pass


async def test_qemu_respects_the_lock(face: Face, path: Path, qemu: Qemu) -> None:
    async with face.open(path, write=True):
        with pytest.raises(AssertionError, match="lock"):
            qemu.io(path, "read 0 512")
    qemu.io(path, "read 0 512")


class Broken:
    """A path that cannot be asked for."""

    def __fspath__(self) -> str:
        raise KeyError("no path today")


WRONG_PATHS: list[tuple[Any, type[Exception], str]] = [
    (b"image.qcow2", TypeError, "str or os.PathLike, not bytes"),
    (5, TypeError, "str or os.PathLike, not int"),
    ("image\0.qcow2", ValueError, "null"),
    ("image\ud800.qcow2", UnicodeEncodeError, "surrogates not allowed"),
    (Broken(), KeyError, "no path today"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG_PATHS)
async def test_what_is_no_path_says_what_is_one(
    face: Face, wrong: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        async with face.open(wrong):
            pass
    with pytest.raises(error, match=words):
        pyimago.StorageOpenOptions(filename=wrong)
    with pytest.raises(error, match=words):
        pyimago.info(wrong)
    with pytest.raises(
        error, match=words if error is not TypeError else "path is a path, a storage or an open"
    ):
        await face.call("bench", wrong)


async def test_a_backing_that_is_no_image_says_what_is_one(face: Face, path: Path) -> None:
    wrong: Any
    for wrong in (path, 5, pyimago.Raw.open_path_sync(path)):
        with pytest.raises(TypeError, match=r"SyncFormatAccess.*open it first"):
            async with face.open(path, backing=wrong):
                pass


@pytest.mark.parametrize("requests", [[bytearray(4), 0], [(bytearray(4), 0, 1)], [bytearray(4)]])
async def test_requests_are_pairs(face: Face, path: Path, requests: Any) -> None:
    async with face.open(path) as image:
        with pytest.raises(TypeError, match="pairs"):
            await image.read_many(requests)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cluster_size": "64k"}, TypeError),
        ({"cluster_size": 1 << 80}, ValueError),
        ({"refcount_bits": -1}, ValueError),
        ({"colour": 3}, TypeError),
    ],
)
def test_a_wrong_layout_names_the_option(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        pyimago.create(tmp_path / "new.qcow2", 512, format="qcow2", **options)
    assert not any(tmp_path.iterdir())


def test_storages_and_options_show_what_they_are(path: Path) -> None:
    options = pyimago.StorageOpenOptions(filename=path, direct=True)
    shown = "write=False, direct=True, lock='auto', durable=True"
    assert repr(options) == f"StorageOpenOptions(filename={str(path)!r}, {shown})"
    file = pyimago.File.open_sync(pyimago.StorageOpenOptions(filename=path))
    assert repr(file) == f"<File of {path} ({path.stat().st_size} bytes)>"
    assert repr(pyimago.Memory(3)) == "<Memory (3 bytes)>"


def test_images_and_storages_are_not_pickled_or_copied(path: Path) -> None:
    with pyimago.open(path) as image:
        for thing in (image, pyimago.Memory(3)):
            for take in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=rf"pickle 'pyimago\.{type(thing).__name__}'"):
                    take(thing)


def test_without_a_running_loop_a_runtime_error_says_so(path: Path) -> None:
    image = pyimago.FormatAccess(pyimago.Qcow2.open_path_sync(path))
    uses: list[Callable[[], object]] = [
        lambda: image.pread(1, 0),
        image.flush,
        image.close,
        lambda: image.extents().__anext__(),
        lambda: pyimago.Qcow2.open_path(path),
        lambda: pyimago.aio.open(path).__await__(),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="no running event loop"):
            use()


@pytest.mark.parametrize("length", [4, 100_000])
def test_one_image_in_loop_after_loop_and_a_result_awaited_twice(path: Path, length: int) -> None:
    image = pyimago.FormatAccess(pyimago.Qcow2.open_path_sync(path))

    async def twice() -> None:
        reading = image.pread(length, 0)
        assert await reading == await reading == CONTENT[:length]

    for _ in range(2):
        asyncio.run(twice())
    with ThreadPoolExecutor(2) as threads:
        for _ in threads.map(lambda _: asyncio.run(twice()), range(8)):
            pass


def test_the_module_lists_its_names_and_no_others() -> None:
    assert {name for name in dir(pyimago) if not name.startswith("__")} == set(pyimago.__all__)
    for name in pyimago.__all__:
        assert getattr(pyimago, name).__doc__


def test_exceptions_are_called_what_programs_call_them() -> None:
    assert pyimago.ImageLockedError.__module__ == "pyimago"
    error = pyimago.CorruptImageError("message", "file", 512)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.filename, again.offset) == ("message", "file", 512)


@pytest.mark.parametrize("options", [{"format": "vhdx2"}, {"implicit": "maybe"}])
async def test_wrong_options_name_themselves(face: Face, path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        async with face.open(path, **options):
            pass


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("check", {"deep": "yes"}),
        ("convert", {"threads": "two"}),
        ("convert", {"format": "qcow2", "extended_l2": "yes"}),
        ("amend", {"lazy_refcounts": "yes"}),
        ("bench", {"request_size": -1}),
        ("bench", {"pattern": 256, "write": True}),
    ],
)
async def test_what_is_wrong_is_called_what_the_program_called_it(
    face: Face, path: Path, verb: str, options: dict[str, Any]
) -> None:
    target = ["out"] if verb == "convert" else []
    with pytest.raises((TypeError, ValueError)) as raised:
        await face.call(verb, path, *target, **options)
    assert any(name in note for name in options for note in raised.value.__notes__)
    assert not isinstance(raised.value, OverflowError)


async def test_a_refused_shrink_names_the_image(face: Face, path: Path) -> None:
    with pytest.raises(ValueError, match=r"image\.qcow2: a disk of 512 bytes would lose"):
        await face.call("resize", path, 512)
    with pytest.raises(TypeError):
        await face.call("resize", path, 0.5)


async def test_options_are_keyword_only(face: Face, path: Path) -> None:
    with pytest.raises(TypeError):
        pyimago.open(path, True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_the_exceptions_have_one_base() -> None:
    for name in (
        "InvalidImageError",
        "CorruptImageError",
        "UnsupportedFeatureError",
        "ImplicitOpenDeniedError",
        "ImageLockedError",
    ):
        assert issubclass(getattr(pyimago, name), pyimago.ImagoError)


async def test_dropping_a_written_image_without_flush_warns_and_names_it(path: Path) -> None:
    qcow2 = await pyimago.Qcow2.open_path(path, write=True)
    image = pyimago.FormatAccess(qcow2)
    await image.write(b"x", 0)
    last = [image]
    del image, qcow2
    with pytest.warns(ResourceWarning, match=r"image\.qcow2"):
        last.clear()


async def test_dropping_a_flushed_or_read_only_image_does_not_warn(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = pyimago.FormatAccess(await pyimago.Qcow2.open_path(path, write=True))
        await image.write(b"x", 0)
        await image.flush()
        del image
        gc.collect()
        image = pyimago.FormatAccess(await pyimago.Qcow2.open_path(path, write=False))
        del image
        gc.collect()


def test_dropping_a_synchronous_image_flushes(path: Path) -> None:
    image = pyimago.SyncFormatAccess(pyimago.Qcow2.open_path_sync(path, write=True))
    image.write(b"dropped", 100)
    del image
    gc.collect()
    with pyimago.open(path) as again:
        assert again.pread(7, 100) == b"dropped"
