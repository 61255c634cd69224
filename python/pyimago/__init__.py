"""VM disk images (qcow2, raw) in process: synchronous and awaitable.

`open` and `aio.open` open an image with all it names; `File`, `Qcow2`, `FormatAccess` and their like do the same step by
step. Offsets, lengths and sizes are in bytes throughout.
"""

from __future__ import annotations

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

__all__ = [
    # Whole images
    "open",
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
