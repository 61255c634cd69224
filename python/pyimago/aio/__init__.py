"""The same verbs, awaited: `async with pyimago.aio.open("image.qcow2") as image:`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pyimago import _bitmap_awaited as bitmap
from pyimago import _luks_awaited as luks
from pyimago import _native
from pyimago import _snapshot_awaited as snapshot
from pyimago._errors import shrinks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from typing import Any

    from typing_extensions import Unpack

    from pyimago._native import Extent, FormatAccess, SyncFormatAccess
    from pyimago._types import (
        Amendment,
        Backing,
        BenchResult,
        CheckResult,
        Comparison,
        Conversion,
        Converted,
        DataFile,
        Format,
        ImageInfo,
        Implicit,
        Lock,
        Measurement,
        NewImage,
        Place,
        Preallocation,
        Progress,
        Repair,
        Secret,
        Source,
        Sources,
        Stream,
        StrPath,
    )

__all__ = [
    "open",
    "create",
    "info",
    "info_chain",
    "convert",
    "dd",
    "check",
    "compare",
    "hash",
    "measure",
    "amend",
    "rebase",
    "commit",
    "resize",
    "map",
    "bench",
    "snapshot",
    "bitmap",
    "luks",
]


class _Opening:
    """An image that is being opened: `await` it, or use it in `async with`, which closes it at the end."""

    def __init__(self, start: Callable[[], Awaitable[FormatAccess]]) -> None:
        self._start = start
        self._image: FormatAccess | None = None

    def __await__(self) -> Generator[Any, Any, FormatAccess]:
        return self._start().__await__()

    async def __aenter__(self) -> FormatAccess:
        self._image = await self
        return self._image

    async def __aexit__(self, *_: object) -> None:
        if self._image is not None:
            await self._image.close()


def open(
    path: Place,
    *,
    write: bool = False,
    format: Format | None = None,
    snapshot: str | None = None,
    backing: Backing | Literal["implicit"] | None = "implicit",
    data_file: DataFile | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    lock: Lock = "auto",
    direct: bool = False,
    l2_cache_size: int | None = None,
    refcount_cache_size: int | None = None,
) -> _Opening:
    """Open the image at `path` as `pyimago.open` does; the image's operations are awaited.

    `await` the result for a `FormatAccess`, or use it in `async with`. A function given as `implicit` or
    `secret` is called on another thread.
    """
    return _Opening(
        partial(
            _native.open_awaited,
            path,
            write=write,
            format=format,
            snapshot=snapshot,
            backing=backing,
            data_file=data_file,
            implicit=implicit,
            secret=secret,
            lock=lock,
            direct=direct,
            l2_cache_size=l2_cache_size,
            refcount_cache_size=refcount_cache_size,
        )
    )


async def create(
    path: StrPath,
    size: int | None = None,
    *,
    format: Format,
    overwrite: bool = False,
    unsafe: bool = False,
    **layout: Unpack[NewImage],
) -> None:
    """As `pyimago.create`, awaited."""
    await _native.create_awaited(path, size, format, layout, overwrite=overwrite, unchecked=unsafe)


async def info(path: Place, *, format: Format | None = None, lock: Lock = "off") -> ImageInfo:
    """As `pyimago.info`, awaited."""
    from pyimago._types import ImageInfo

    (document,) = await _native.info_awaited(path, format, None, lock)
    return ImageInfo.from_document(document)


async def info_chain(
    path: Place, *, format: Format | None = None, implicit: Implicit = "beside", lock: Lock = "off"
) -> list[ImageInfo]:
    """As `pyimago.info_chain`, awaited. A function given as `implicit` is called on another thread."""
    from pyimago._types import ImageInfo

    return [
        ImageInfo.from_document(document)
        for document in await _native.info_awaited(path, format, implicit, lock)
    ]


async def convert(
    source: Sources,
    target: StrPath | SyncFormatAccess | FormatAccess | Stream,
    *,
    source_format: Format | None = None,
    format: Format = "raw",
    implicit: Implicit = "beside",
    source_secret: Secret | None = None,
    progress: Progress | None = None,
    target_is_zero: bool = False,
    layer: bool = False,
    **options: Unpack[Conversion],
) -> Converted:
    """As `pyimago.convert`, awaited.

    Cancelling the task ends it; what was at the target stays. `progress`, a function given as `implicit` and
    the `write` of a stream are called on another thread.
    """
    from pyimago._types import Converted, parted

    how, layout = parted(options)
    how |= {"target_is_zero": target_is_zero, "layer": layer}
    return Converted.of(
        *await _native.convert_awaited(
            source, target, source_format, format, implicit, source_secret, progress, how, layout
        )
    )


async def dd(
    source: Source,
    target: StrPath | SyncFormatAccess | FormatAccess | Stream,
    *,
    block_size: int = 512,
    count: int | None = None,
    skip: int = 0,
    source_format: Format | None = None,
    format: Format = "raw",
    implicit: Implicit = "beside",
    source_secret: Secret | None = None,
    progress: Progress | None = None,
    **options: Unpack[Conversion],
) -> Converted:
    """As `pyimago.dd`, awaited, as `convert` is."""
    from pyimago._types import Converted, parted

    how, layout = parted(options)
    how["part"] = (skip * block_size, None if count is None else count * block_size)
    return Converted.of(
        *await _native.convert_awaited(
            source, target, source_format, format, implicit, source_secret, progress, how, layout
        )
    )


async def check(
    path: Place,
    *,
    format: Format | None = None,
    repair: Repair = "none",
    deep: bool = False,
    implicit: Implicit = "beside",
    lock: Lock = "auto",
    progress: Progress | None = None,
) -> CheckResult:
    """As `pyimago.check`, awaited; cancelling the task ends it. Callables are called on another thread."""
    from pyimago._types import CheckResult

    return CheckResult.from_document(
        *await _native.check_awaited(path, format, repair, deep, implicit, lock, progress)
    )


async def compare(
    first: Source,
    second: Source,
    *,
    first_format: Format | None = None,
    second_format: Format | None = None,
    strict: bool = False,
    implicit: Implicit = "beside",
    first_secret: Secret | None = None,
    second_secret: Secret | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """As `pyimago.compare`, awaited; cancelling the task ends it. Callables are called on another thread."""
    from pyimago._types import Comparison

    return Comparison(
        *await _native.compare_awaited(
            first,
            second,
            first_format,
            second_format,
            strict,
            implicit,
            first_secret,
            second_secret,
            progress,
        )
    )


async def hash(
    source: Source,
    *,
    format: Format | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> str:
    """As `pyimago.hash`, awaited; cancelling the task ends it. Callables are called on another thread."""
    return (await _native.hash_awaited(source, format, implicit, secret, progress)).hex()


async def measure(
    source: Source | None = None,
    *,
    size: int | None = None,
    source_format: Format | None = None,
    format: Format = "raw",
    implicit: Implicit = "beside",
    source_secret: Secret | None = None,
    progress: Progress | None = None,
    **layout: Unpack[NewImage],
) -> Measurement:
    """As `pyimago.measure`, awaited; cancelling the task ends it. Callables are called on another thread."""
    from pyimago._types import Measurement

    return Measurement(
        *await _native.measure_awaited(
            source, size, source_format, format, implicit, source_secret, progress, layout
        )
    )


async def amend(
    path: StrPath,
    *,
    format: Format | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **changes: Unpack[Amendment],
) -> None:
    """As `pyimago.amend`, awaited; cancelling the task ends it, with the old or the new image.

    Callables are called on another thread.
    """
    await _native.amend_awaited(path, format, implicit, secret, force, progress, changes)


async def rebase(
    path: StrPath,
    backing: StrPath | None,
    *,
    backing_format: str | None = None,
    format: Format | None = None,
    unsafe: bool = False,
    compress: bool = False,
    compression_level: int | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> None:
    """As `pyimago.rebase`, awaited; cancelling the task ends it. Callables are called on another thread."""
    await _native.rebase_awaited(
        path,
        backing,
        backing_format,
        format,
        unsafe,
        compress,
        compression_level,
        implicit,
        secret,
        progress,
    )


async def commit(
    path: StrPath,
    *,
    base: StrPath | None = None,
    format: Format | None = None,
    keep: bool = False,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    rate_limit: int | None = None,
    progress: Progress | None = None,
) -> None:
    """As `pyimago.commit`, awaited; cancelling the task ends it. Callables are called on another thread."""
    await _native.commit_awaited(path, base, format, keep, implicit, secret, rate_limit, progress)


async def resize(
    path: Place,
    size: int,
    *,
    format: Format | None = None,
    shrink: bool = False,
    preallocation: Preallocation = "off",
    implicit: Implicit = "beside",
    secret: Secret | None = None,
) -> None:
    """As `pyimago.resize`, awaited."""
    async with open(path, write=True, format=format, implicit=implicit, secret=secret) as image:
        if size < image.size and not shrink:
            raise shrinks(image.size, size)
        await image.resize(size, preallocation=preallocation)


async def map(
    path: Place,
    offset: int = 0,
    length: int | None = None,
    *,
    format: Format | None = None,
    snapshot: str | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
) -> list[Extent]:
    """As `pyimago.map`, awaited."""
    return await _native.map_awaited(path, offset, length, format, snapshot, implicit, secret)


async def bench(
    path: Place,
    *,
    write: bool = False,
    count: int = 75_000,
    depth: int = 64,
    request_size: int = 4096,
    offset: int = 0,
    step: int | None = None,
    pattern: int = 0,
    flush_interval: int | None = None,
    drain: bool = True,
    direct: bool = False,
    lock: Lock = "auto",
    format: Format | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """As `pyimago.bench`, awaited; cancelling the task ends it. Callables are called on another thread."""
    from pyimago._types import BenchResult

    seconds = await _native.bench_awaited(
        path,
        format,
        pattern if write else None,
        count,
        depth,
        request_size,
        offset,
        request_size if step is None else step,
        flush_interval,
        drain,
        direct,
        lock,
        implicit,
        secret,
        progress,
    )
    return BenchResult(write, count, request_size, depth, seconds)
