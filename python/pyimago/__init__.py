"""VM disk images (qcow2, raw, LUKS) in process: synchronous and awaitable.

`open` and `aio.open` open an image with all it names; `File`, `Qcow2`, `FormatAccess` and their like do the
same step by step. Offsets, lengths and sizes are in bytes throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago import bitmap, luks, snapshot
from pyimago._errors import (
    CorruptImageError,
    ImageClosedError,
    ImageLockedError,
    ImagoError,
    ImplicitOpenDeniedError,
    InvalidImageError,
    LatchedError,
    UnsupportedFeatureError,
    WrongSecretError,
)
from pyimago._native import (
    AsyncBitmaps,
    AsyncSnapshots,
    Bitmap,
    Bitmaps,
    Disk,
    Extent,
    File,
    FormatAccess,
    Memory,
    Null,
    Qcow2,
    Raw,
    Slice,
    Snapshot,
    Snapshots,
    Storage,
    StorageOpenOptions,
    SyncFormatAccess,
    Throttled,
    open,
)
from pyimago._verbs import (
    amend,
    bench,
    check,
    commit,
    compare,
    convert,
    create,
    dd,
    hash,
    info,
    info_chain,
    map,
    measure,
    rebase,
    resize,
)

if TYPE_CHECKING:
    from pyimago import aio
    from pyimago._types import (
        BenchResult,
        CacheStats,
        CacheUse,
        CheckResult,
        Comparison,
        Converted,
        Finding,
        ImageInfo,
        KeySlot,
        Measurement,
    )

__all__ = [
    # Whole images
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
    "ImageInfo",
    "CheckResult",
    "Finding",
    "CacheStats",
    "CacheUse",
    "Comparison",
    "Converted",
    "Measurement",
    "BenchResult",
    "luks",
    "KeySlot",
    "aio",
    # Access
    "SyncFormatAccess",
    "FormatAccess",
    "Extent",
    "Bitmap",
    "Bitmaps",
    "AsyncBitmaps",
    "Snapshot",
    "Snapshots",
    "AsyncSnapshots",
    # Formats
    "Raw",
    "Qcow2",
    # Storages
    "Storage",
    "File",
    "Null",
    "Memory",
    "Slice",
    "Disk",
    "Throttled",
    "StorageOpenOptions",
    # Errors
    "ImagoError",
    "InvalidImageError",
    "CorruptImageError",
    "UnsupportedFeatureError",
    "ImplicitOpenDeniedError",
    "WrongSecretError",
    "ImageLockedError",
    "ImageClosedError",
    "LatchedError",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


_TYPES = {
    "BenchResult",
    "CacheStats",
    "CacheUse",
    "CheckResult",
    "Comparison",
    "Converted",
    "Finding",
    "ImageInfo",
    "KeySlot",
    "Measurement",
}
"""Dataclasses, which take longer to import than all the rest together."""


def __getattr__(name: str) -> object:
    if name == "aio":
        import pyimago.aio

        return pyimago.aio
    if name in _TYPES:
        from pyimago import _types

        return getattr(_types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
