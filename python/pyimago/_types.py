"""What an image says of itself, and names for types."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

from pyimago._native import FormatAccess, Storage, SyncFormatAccess

StrPath: TypeAlias = str | os.PathLike[str]
Format: TypeAlias = Literal["raw", "qcow2"]
Backing: TypeAlias = FormatAccess | SyncFormatAccess
DataFile: TypeAlias = Storage | StrPath
Implicit: TypeAlias = Literal["beside", "deny", "allow"] | Callable[[str, str], object]
Progress: TypeAlias = Callable[[int, int], object]


class Layout(TypedDict, total=False):
    """How a new image is laid out; what is absent or None is what `qemu-img` takes.

    Raw images have `preallocation` only.

    Attributes:
        preallocation: What is set aside for the disk's bytes: "off" (default); "metadata" (qcow2), a place
            for every cluster; "falloc", the space too; "full", the space too, written full of zeroes. Over a
            backing file it needs `extended_l2`.
        cluster_size: Bytes of a cluster: a power of two from 512 to 2 MiB (default 64 KiB).
        refcount_bits: Bits of a refcount: 1, 2, 4, 8, 16 (default), 32 or 64.
        version: 2 ("0.10") or 3 ("1.1", the default).
        extended_l2: Allocate in 32nds of a cluster.
        compression_type: How clusters are packed, if any are: "zlib" (default) or "zstd".
        lazy_refcounts: Put off refcount updates while the image is open.
    """

    preallocation: Literal["off", "metadata", "falloc", "full"] | None
    cluster_size: int | None
    refcount_bits: int | None
    version: Literal[2, 3, "0.10", "1.1"] | None
    extended_l2: bool
    compression_type: Literal["zlib", "zstd"] | None
    lazy_refcounts: bool


class NewImage(Layout, total=False):
    """The same, and what other files the image names.

    Attributes:
        backing: The backing file, as the image is to spell it: a relative name starts at the image's
            directory. A name that others would take for a protocol's (`a:b`) is recorded as `./a:b`.
        backing_format: Its format, as the image is to spell it.
        data_file: The external data file, as the image is to spell it (as `backing`); it is created too.
        data_file_raw: The data file is to be a raw image of the disk at all times; one that is there is
            adopted.
    """

    backing: StrPath | None
    backing_format: str | None
    data_file: StrPath | None
    data_file_raw: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two images show a guest the same bytes.

    Attributes:
        difference: What differs first: "content", with `strict` also "size" and "status" (what is allocated
            and what is known to be zero); None: nothing.
        offset: Where in the guest's disk, in bytes; the start of a sector for content.
        sizes_differ: The disks have different sizes; without a difference the rest of the longer one is
            zeroes.
    """

    difference: Literal["size", "status", "content"] | None
    offset: int | None
    sizes_differ: bool

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return self.difference is None


@dataclass(frozen=True, slots=True)
class Measurement:
    """How large a file a new image would need, in bytes.

    Attributes:
        required: With the source's content, or empty; the tables are counted as if all of the disk were
            allocated, so that it is an upper bound.
        fully_allocated: When all of the disk is allocated.
    """

    required: int
    fully_allocated: int

    def to_dict(self) -> dict[str, int]:
        """The document that `qemu-img measure --output=json` prints."""
        return {"required": self.required, "fully-allocated": self.fully_allocated}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself, under the names of `qemu-img info`; no other file was opened for it.

    Attributes:
        filename: The image's file.
        format: Its format.
        virtual_size: Size of the guest's disk in bytes.
        actual_size: Bytes that the file takes up on its medium, where that can be told.
        cluster_size: In bytes, where the format has clusters.
        dirty_flag: Whether it was not closed cleanly.
        encrypted: Whether the guest's data is encrypted.
        backing_filename: The backing file as the image spells it. Untrusted.
        full_backing_filename: The same, seen from here.
        backing_filename_format: The backing file's format as the image says.
        snapshots: One mapping for each snapshot.
        format_specific: What only this format has, where there is something.
        children: The files that the image is in.
    """

    filename: str
    format: str
    virtual_size: int
    actual_size: int | None
    cluster_size: int | None
    dirty_flag: bool
    encrypted: bool
    backing_filename: str | None
    full_backing_filename: str | None
    backing_filename_format: str | None
    snapshots: tuple[Mapping[str, Any], ...]
    format_specific: Mapping[str, Any] | None
    children: tuple[Mapping[str, Any], ...]
    _document: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ImageInfo:
        """The facts of one image from QEMU's JSON `document` of it."""
        return cls(
            filename=document["filename"],
            format=document["format"],
            virtual_size=document["virtual-size"],
            actual_size=document.get("actual-size"),
            cluster_size=document.get("cluster-size"),
            dirty_flag=document["dirty-flag"],
            encrypted=document.get("encrypted", False),
            backing_filename=document.get("backing-filename"),
            full_backing_filename=document.get("full-backing-filename"),
            backing_filename_format=document.get("backing-filename-format"),
            snapshots=tuple(document.get("snapshots", ())),
            format_specific=document.get("format-specific"),
            children=tuple(document["children"]),
            _document=document,
        )

    def to_dict(self) -> dict[str, Any]:
        """The document that `qemu-img info --output=json` prints of the image."""
        return deepcopy(dict(self._document))
