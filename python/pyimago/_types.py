"""What an image says of itself, and names for types."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from pyimago._native import FormatAccess, Storage, SyncFormatAccess

StrPath: TypeAlias = str | os.PathLike[str]
Format: TypeAlias = Literal["raw", "qcow2", "luks"]
SecretBytes: TypeAlias = str | bytes | bytearray | memoryview
Secret: TypeAlias = SecretBytes | Callable[[], SecretBytes] | os.PathLike[str]
Hash: TypeAlias = Literal["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3"]
Backing: TypeAlias = FormatAccess | SyncFormatAccess
Place: TypeAlias = Storage | StrPath
Source: TypeAlias = Place | SyncFormatAccess | FormatAccess
Sources: TypeAlias = Source | Sequence[Source]
DataFile: TypeAlias = Place
Lock: TypeAlias = Literal["auto", "off"]
Implicit: TypeAlias = Literal["beside", "deny", "allow"] | Callable[[str, str], object]
Repair: TypeAlias = Literal["none", "leaks", "all"]
Preallocation: TypeAlias = Literal["off", "metadata", "falloc", "full"]
Progress: TypeAlias = Callable[[int, int], object]


class OpenOptions(TypedDict, total=False):
    """Of `open`, what verbs pass on that open an image, do one thing and close it."""

    format: Format | None
    secret: Secret | None
    implicit: Implicit


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
        encryption: "luks" encrypts the guest's data (qcow2); images of the format "luks" always are. What
            follows goes with it. "aes" is qcow2's own, weak and for old programs only; it takes a `secret`
            and nothing else.
        secret: What will open the image: bytes, str (as UTF-8), a function that returns one of them, or an
            `os.PathLike` for a file whose whole content counts.
        cipher_alg: "aes-256" (default), "aes-128", "serpent-256", "twofish-256" and the like, "cast5-128".
        cipher_mode: "xts" (default), "cbc", "ctr" or "ecb".
        ivgen_alg: "plain64" (default), "plain" or "essiv".
        ivgen_hash_alg: The hash of "essiv": "sha256" unless given.
        hash_alg: The hash of key derivation: "sha256" unless given.
        iter_time: Milliseconds that trying a secret shall take on this machine: 2000 unless given.
        iterations: Iterations of PBKDF2, instead; 1000 at least.
    """

    preallocation: Preallocation | None
    cluster_size: int | None
    refcount_bits: int | None
    version: Literal[2, 3, "0.10", "1.1"] | None
    extended_l2: bool
    compression_type: Literal["zlib", "zstd"] | None
    lazy_refcounts: bool
    encryption: Literal["luks", "aes"] | None
    secret: Secret | None
    cipher_alg: str | None
    cipher_mode: Literal["xts", "cbc", "ctr", "ecb"] | None
    ivgen_alg: Literal["plain64", "plain", "essiv"] | None
    ivgen_hash_alg: Hash | None
    hash_alg: Hash | None
    iter_time: int | None
    iterations: int | None


class NewImage(Layout, total=False):
    """The same, and what other files the image names.

    Attributes:
        backing: The backing file, as the image is to spell it: a relative name starts at the image's
            directory. `json:{...}` describes it; another name that others would take for a protocol's
            (`a:b`) is recorded as `./a:b`.
        backing_format: Its format, as the image is to spell it.
        data_file: The external data file, as the image is to spell it (as `backing`); it is created too.
        data_file_raw: The data file is to be a raw image of the disk at all times; one that is there is
            adopted.
    """

    backing: StrPath | None
    backing_format: str | None
    data_file: StrPath | None
    data_file_raw: bool


class Amendment(TypedDict, total=False):
    """What of an image is to change; what is absent stays as it is.

    All but the last six are of qcow2 images only; those are of images that are encrypted with LUKS, and go
    together as in `qemu-img amend`.

    Attributes:
        version: 2 ("0.10") or 3 ("1.1").
        lazy_refcounts: Put off refcount updates while the image is open (version 3).
        refcount_bits: Bits of a refcount: 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
        backing: The backing file, as the image is to spell it; it is not looked at. None: no backing file.
        backing_format: Its format, as the image is to spell it. Without it a new `backing` has none;
            without `backing` it is that of the one that is there.
        data_file: The external data file, as the image is to spell it; it is not looked at. None: no
            name, who opens the image brings the file.
        data_file_raw: Whether the data file is a raw image of the disk. It can cease to be one, and not
            become one.
        size: Bytes of the disk, a multiple of 512, as `resize` of an open image has it. What is behind a
            smaller one is lost.
        keyslot_state: "active" makes a key slot, which `new_secret` opens; "inactive" erases the one that
            `keyslot` says, or all that `old_secret` opens; with both, that one if the secret opens it.
        keyslot: Number of a key slot, 0 to 7. One that is to be made is the first inactive one otherwise.
        new_secret: What opens the slot that is made.
        old_secret: What opens those to erase.
        iter_time: Milliseconds that trying `new_secret` shall take on this machine: 2000 unless given.
        iterations: Iterations of PBKDF2, instead.
    """

    version: Literal[2, 3, "0.10", "1.1"] | None
    lazy_refcounts: bool | None
    refcount_bits: int | None
    backing: StrPath | None
    backing_format: str | None
    data_file: StrPath | None
    data_file_raw: bool | None
    size: int | None
    keyslot_state: Literal["active", "inactive"] | None
    keyslot: int | None
    new_secret: Secret | None
    old_secret: Secret | None
    iter_time: int | None
    iterations: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes:
        kind: What is wrong: "refcount-too-low", "refcount-too-high", "copied", "overlap", "past-end", ...
        severity: "corruption" (may cost data), "leak" (lost space), "error" (could not be checked) or "info".
        offset: Where in the image file, in bytes: of an entry the entry itself, of a cluster its start.
        guest_offset: Where on the guest's disk, in bytes, where that is known.
        message: The same for people.
    """

    kind: str
    severity: Literal["corruption", "leak", "error", "info"]
    offset: int | None
    guest_offset: int | None
    message: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check came to; the numbers are those of `qemu-img check`.

    Attributes:
        filename: The image's file.
        format: Its format.
        check_errors: Parts of the image that could not be checked.
        corruptions: What may cost data; after a repair what is left.
        leaks: Clusters that nothing uses; after a repair what is left.
        corruptions_fixed: Corruptions that the repair ended.
        leaks_fixed: Leaks that the repair ended.
        image_end_offset: Where the last cluster in use ends in the file.
        total_clusters: Clusters of the guest's disk.
        allocated_clusters: Those of them that have space of their own.
        fragmented_clusters: Those that do not follow the one before in the file.
        compressed_clusters: Those that are compressed.
        findings: What was found, 1,000 at most; the counts go on.
    """

    filename: str
    format: str
    check_errors: int
    corruptions: int
    leaks: int
    corruptions_fixed: int
    leaks_fixed: int
    image_end_offset: int
    total_clusters: int
    allocated_clusters: int
    fragmented_clusters: int
    compressed_clusters: int
    findings: tuple[Finding, ...]
    _document: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def clean(self) -> bool:
        """Nothing is wrong, and all could be checked."""
        return not (self.check_errors or self.corruptions or self.leaks)

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], findings: Iterable[tuple[Any, Any, int | None, int | None, str]]
    ) -> CheckResult:
        """The result from QEMU's JSON `document` and the findings."""
        return cls(
            filename=document["filename"],
            format=document["format"],
            check_errors=document["check-errors"],
            corruptions=document.get("corruptions", 0),
            leaks=document.get("leaks", 0),
            corruptions_fixed=document.get("corruptions-fixed", 0),
            leaks_fixed=document.get("leaks-fixed", 0),
            image_end_offset=document.get("image-end-offset", 0),
            total_clusters=document.get("total-clusters", 0),
            allocated_clusters=document.get("allocated-clusters", 0),
            fragmented_clusters=document.get("fragmented-clusters", 0),
            compressed_clusters=document.get("compressed-clusters", 0),
            findings=tuple(Finding(*finding) for finding in findings),
            _document=document,
        )

    def to_dict(self) -> dict[str, Any]:
        """The document that `qemu-img check --output=json` prints of the image."""
        return deepcopy(dict(self._document))


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
class Converted:
    """What a conversion came to.

    Attributes:
        unreadable: What could not be read and is zeroes in the target (`salvage`): offset and length of each
            range of the disk, in bytes, first to last.
        skipped_bitmaps: The inconsistent bitmaps that were left out (`bitmaps="sound"`).
    """

    unreadable: tuple[tuple[int, int], ...] = ()
    skipped_bitmaps: tuple[str, ...] = ()

    @classmethod
    def of(cls, unreadable: Iterable[tuple[int, int]], skipped_bitmaps: Iterable[str]) -> Converted:
        """From what the engine gives."""
        return cls(tuple(unreadable), tuple(skipped_bitmaps))


class Stream(Protocol):
    """What takes bytes in their order, such as a binary file or a pipe."""

    def write(self, data: bytes, /) -> int | None:
        """Take `data`, or the first bytes of it, and say how many; None: all."""


class Copying(TypedDict, total=False):
    """How content is copied; what is absent or None is what `qemu-img convert` does.

    Attributes:
        compress: Write compressed clusters (qcow2), packed as `compression_type` says.
        compression_level: 1 to 9 for zlib (6), 1 to 22 for zstd (3).
        sparse: Bytes of zeroes in data that are worth leaving out, a multiple of 512 (4096). 0 looks for none
            and writes zeroes as data: all of the target is allocated.
        threads: 1 to 16; one for each core unless given.
        rate: Bytes written in a second, at most.
        salvage: What cannot be read becomes zeroes, sector by sector, and is listed in the result.
        bitmaps: Persistent dirty bitmaps: "none", "all" or "sound", which leaves out inconsistent ones.
        offload: How data may get from file to file without being read, where both are plain files. "share"
            shares the source's space where the file system can (reflink), in new images without
            `preallocation`; "copy" leaves it to the system, which may move the bytes (`copy_file_range`), and
            excludes `sparse`, `compress` and `salvage`; "off" reads and writes. "share" unless given, and
            "off" with `sparse`: in what is not read no zeroes are found.
        durable: The target is on its medium when it appears (True). Without, the system writes it when it
            likes, as with `qemu-img convert`: a loss of power soon afterwards may leave anything there.
    """

    compress: bool
    compression_level: int | None
    sparse: int | None
    threads: int | None
    rate: int | None
    salvage: bool
    bitmaps: Literal["none", "all", "sound"]
    offload: Literal["off", "share", "copy"] | None
    durable: bool


COPYING = frozenset(Copying.__annotations__)


class Conversion(NewImage, Copying, total=False):
    """How content is copied, and how the new image is laid out."""


def parted(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of `Copying`, and those of the layout."""
    how = {name: value for name, value in options.items() if name in COPYING}
    return how, {name: value for name, value in options.items() if name not in COPYING}


@dataclass(frozen=True, slots=True)
class Measurement:
    """How large a file a new image would need, in bytes.

    Attributes:
        required: With the source's content, or empty; the tables are counted as if all of the disk were
            allocated, so that it is an upper bound.
        fully_allocated: When all of the disk is allocated.
        bitmaps: What the source's bitmaps take beside; None where source or target can have none.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None

    def to_dict(self) -> dict[str, int]:
        """The document that `qemu-img measure --output=json` prints."""
        document = {"required": self.required, "fully-allocated": self.fully_allocated}
        return document if self.bitmaps is None else document | {"bitmaps": self.bitmaps}


@dataclass(frozen=True, slots=True)
class BenchResult:
    """How fast an image was.

    Attributes:
        write: Requests wrote; otherwise they read.
        count: Requests.
        request_size: Bytes of each.
        depth: Requests under way at a time.
        seconds: That all of them took.
    """

    write: bool
    count: int
    request_size: int
    depth: int
    seconds: float

    @property
    def requests_per_second(self) -> float:
        """Requests that ended in a second, on average."""
        return self.count / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes that they moved in a second, on average."""
        return self.requests_per_second * self.request_size

    def to_dict(self) -> dict[str, Any]:
        """All of it; `qemu-img bench` has no JSON."""
        return asdict(self) | {
            "requests-per-second": self.requests_per_second,
            "bytes-per-second": self.bytes_per_second,
        }


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How one cache of metadata has been used since the image was opened.

    Attributes:
        hits: Look-ups answered from memory. Those of several threads at once may count as one.
        misses: Look-ups that had to read the file.
        capacity: Bytes that it may hold.
        used: Bytes that it holds.
    """

    hits: int
    misses: int
    capacity: int
    used: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The caches of an image's metadata; those of the images below it are not counted.

    Attributes:
        l2: Of the mapping: L2 tables.
        refcount: Of the refcounts; not used by an image that is only read.
    """

    l2: CacheUse
    refcount: CacheUse


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
    snapshots: tuple[Mapping[str, Any], ...] = field(hash=False)
    format_specific: Mapping[str, Any] | None = field(hash=False)
    children: tuple[Mapping[str, Any], ...] = field(hash=False)
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


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One key slot of an image that is encrypted with LUKS.

    Attributes:
        number: 0 to 7.
        active: Whether a secret opens it.
        iterations: Iterations of PBKDF2, if it is active.
        stripes: Stripes of its key material, if it is active.
        key_offset: Where its key material is, in bytes from the LUKS header on.
    """

    number: int
    active: bool
    iterations: int | None
    stripes: int | None
    key_offset: int

    @classmethod
    def all_of(cls, image: ImageInfo) -> list[KeySlot]:
        """The eight of `image`."""
        data: dict[str, Any] = image.format_specific["data"] if image.format_specific else {}
        luks: dict[str, Any] = data.get("encrypt", data)
        if "slots" not in luks:
            raise ValueError(f"{image.filename}: the image has no key slots: it is not encrypted with LUKS")
        return [
            cls(number, slot["active"], slot.get("iters"), slot.get("stripes"), slot["key-offset"])
            for number, slot in enumerate(luks["slots"])
        ]
