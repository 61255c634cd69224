"""VM disk images (qcow2, raw) in process: synchronous and awaitable.

`open` and `aio.open` open an image with all it names; `File`, `Qcow2`, `FormatAccess` and their like do the
same step by step. Offsets, lengths and sizes are in bytes throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago import _native, aio
from pyimago._errors import (
    CorruptImageError,
    ImageClosedError,
    ImageLockedError,
    ImagoError,
    ImplicitOpenDeniedError,
    InvalidImageError,
    LatchedError,
    UnsupportedFeatureError,
)
from pyimago._native import (
    Extent,
    File,
    FormatAccess,
    Memory,
    Null,
    Qcow2,
    Raw,
    Storage,
    StorageOpenOptions,
    SyncFormatAccess,
    Throttled,
    open,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyimago._types import (
        Comparison,
        Format,
        ImageInfo,
        Implicit,
        Layout,
        NewImage,
        Progress,
        StrPath,
    )

__all__ = [
    # Whole images
    "open",
    "create",
    "info",
    "info_chain",
    "convert",
    "compare",
    "hash",
    "ImageInfo",
    "Comparison",
    "aio",
    # Access
    "SyncFormatAccess",
    "FormatAccess",
    "Extent",
    # Formats
    "Raw",
    "Qcow2",
    # Storages
    "Storage",
    "File",
    "Null",
    "Memory",
    "Throttled",
    "StorageOpenOptions",
    # Errors
    "ImagoError",
    "InvalidImageError",
    "CorruptImageError",
    "UnsupportedFeatureError",
    "ImplicitOpenDeniedError",
    "ImageLockedError",
    "ImageClosedError",
    "LatchedError",
]


def create(path: StrPath, size: int, *, format: Format, **layout: Unpack[NewImage]) -> None:
    """Create an image of `size` bytes in a new file at `path`.

    Args:
        path: The file to create; one that is there already is a `FileExistsError` and stays as it is.
        size: Size of the guest's disk in bytes; qcow2 rounds it up to a multiple of 512.
        format: "raw" or "qcow2".
        **layout: For qcow2 only: `cluster_size`, `refcount_bits`, `version`, `extended_l2`,
            `compression_type`, `lazy_refcounts`, `backing`, `backing_format`, `data_file`, `data_file_raw`;
            see `NewImage`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other.
        OSError: The file cannot be created or written.
    """
    _native.create(path, size, format, layout)


def info(path: StrPath, *, format: Format | None = None) -> ImageInfo:
    """What the image at `path` says of itself. No other file is opened, and no lock taken.

    Its format is probed unless given.

    Raises:
        InvalidImageError: The file is no image of that format.
        OSError: The file cannot be read.
    """
    from pyimago._types import ImageInfo

    (document,) = _native.info(path, format, None)
    return ImageInfo.from_document(document)


def info_chain(
    path: StrPath, *, format: Format | None = None, implicit: Implicit = "beside"
) -> list[ImageInfo]:
    """As `info`, of the image at `path` and of its backing files, topmost first.

    `implicit` says which backing files may be looked at, as in `open`.

    Raises:
        ImplicitOpenDeniedError: `implicit` does not allow a backing file.
        InvalidImageError: A file is no image of its format, or the chain comes back to itself.
        OSError: A file cannot be read.
    """
    from pyimago._types import ImageInfo

    return [ImageInfo.from_document(document) for document in _native.info(path, format, implicit)]


def convert(
    source: StrPath,
    target: StrPath,
    *,
    source_format: Format | None = None,
    format: Format = "raw",
    implicit: Implicit = "beside",
    progress: Progress | None = None,
    **layout: Unpack[Layout],
) -> None:
    """Write the content of the image at `source` as a new image, which appears at `target` once it is whole.

    Args:
        source: The image to read, with its backing chain. Nothing is written to it.
        target: The file to write. What is there is replaced at the end; it stays as it is after a failure.
        source_format: The source's format; probed unless given.
        format: The target's format.
        implicit: Which files that the source names may be opened, as in `open`.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the conversion.
        **layout: Of a qcow2 target: `cluster_size`, `refcount_bits`, `version`, `extended_l2`,
            `compression_type`, `lazy_refcounts`; see `Layout`.

    Raises:
        ImagoError: The source cannot be read as an image, or the target is in use.
        OSError: A file cannot be read or written.
    """
    _native.convert(source, target, source_format, format, implicit, progress, layout)


def compare(
    first: StrPath,
    second: StrPath,
    *,
    first_format: Format | None = None,
    second_format: Format | None = None,
    strict: bool = False,
    implicit: Implicit = "beside",
    progress: Progress | None = None,
) -> Comparison:
    """Whether the images at `first` and `second` show a guest the same bytes, on all cores.

    Args:
        first: An image, read with its backing chain.
        second: Another.
        first_format: The first one's format; probed unless given.
        second_format: The second one's.
        strict: Sizes, and what is allocated or known to be zero, count too. Otherwise a longer disk is equal
            if its rest is zeroes.
        implicit: Which files that the images name may be opened, as in `open`.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the comparison.

    Raises:
        ImagoError: A file cannot be read as an image.
        OSError: A file cannot be read.
    """
    from pyimago._types import Comparison

    return Comparison(
        *_native.compare(first, second, first_format, second_format, strict, implicit, progress)
    )


def hash(
    path: StrPath,
    *,
    format: Format | None = None,
    implicit: Implicit = "beside",
    progress: Progress | None = None,
) -> str:
    """A hash of what a guest sees of the image at `path`: 64 hexadecimal digits, on all cores.

    Equal content has an equal hash, whatever the formats and what is allocated; the disk's size counts.
    Ranges that are known to be zero cost nothing. It is BLAKE3 over the size and the BLAKE3 digests of the blocks of
    2 MiB that are not all zeroes, each after its number; the engine's documentation has the exact definition.

    Raises:
        ImagoError: A file cannot be read as an image.
        OSError: A file cannot be read.
    """
    return _native.hash(path, format, implicit, progress).hex()


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> object:
    # Dataclasses take longer to import than all the rest together.
    if name in {"ImageInfo", "Comparison"}:
        from pyimago import _types

        return getattr(_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
