"""Verbs on whole images, of `pyimago` and `pyimago.aio`."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

from pyimago import _native
from pyimago._errors import shrinks
from pyimago._faces import Plan, native, verb, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from typing import Literal

    from typing_extensions import Unpack

    from pyimago._faces import Image
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


@verb
def create(
    path: StrPath,
    size: int | None = None,
    *,
    format: Format,
    overwrite: bool = False,
    unsafe: bool = False,
    progress: Progress | None = None,
    **layout: Unpack[NewImage],
) -> Plan[None]:
    """Create an image of `size` bytes in a file at `path`.

    Args:
        path: The file to create; one that is there already is a `FileExistsError` and stays as it is.
        size: Size of the guest's disk in bytes; qcow2 rounds it up to a multiple of 512. None takes the size
            of the backing file's disk.
        format: "raw", "qcow2" or "luks".
        overwrite: Replace a file that is at `path`, once the new image is whole. A data file is never
            replaced. A block device becomes the image where it stands, unless it is mounted; a raw one keeps
            what is on it, but for the first sector.
        unsafe: Record the backing file's name byte by byte and look at nothing. Otherwise that file has to be
            there and be an image of the format `backing_format`, which has to be given.
        progress: Called now and then with the bytes that are set aside or written and all of them; what it
            raises ends the work, and nothing is left of the new image.
        **layout: `preallocation`; for qcow2 only: `cluster_size`, `refcount_bits`, `version`, `extended_l2`,
            `compression_type`, `lazy_refcounts`, `backing`, `backing_format`, `data_file`, `data_file_raw`;
            and for qcow2 (with `encryption="luks"`) and luks: `secret`, `cipher_alg`, `cipher_mode`,
            `ivgen_alg`, `ivgen_hash_alg`, `hash_alg`, `iter_time`, `iterations`; see `NewImage`.

    Raises:
        ValueError: An option is out of its range, or options exclude each other. No file was touched.
        OSError: A file cannot be created, read or written.
        InvalidImageError: The backing file is no image of its format.
        ImageLockedError: The file to replace is in use.
    """
    return native(
        _native.create,
        _native.create_awaited,
        path,
        size,
        format,
        layout,
        overwrite,
        unsafe,
        progress,
    )


@verb
def info(path: Place, *, format: Format | None = None, lock: Lock = "off") -> Plan[ImageInfo]:
    """What the image at `path`, a file or a storage, says of itself. No other file is opened.

    Its format is probed unless given. No lock is taken, unless `lock` is "auto": then an image that somebody
    writes to is an `ImageLockedError`, as it is for `qemu-img info`.

    Raises:
        InvalidImageError: The file is no image of that format.
        OSError: The file cannot be read.
    """
    return _infos(path, format, None, lock).then(lambda infos: infos[0])


@verb
def info_chain(
    path: Place, *, format: Format | None = None, implicit: Implicit = "beside", lock: Lock = "off"
) -> Plan[list[ImageInfo]]:
    """As `info`, of the image at `path` and of its backing files, topmost first.

    `implicit` says which backing files may be looked at, as in `open`.

    Raises:
        ImplicitOpenDeniedError: `implicit` does not allow a backing file.
        InvalidImageError: A file is no image of its format, or the chain comes back to itself.
        OSError: A file cannot be read.
    """
    return _infos(path, format, implicit, lock)


def _infos(path: Place, format: Format | None, chain: Implicit | None, lock: Lock) -> Plan[list[ImageInfo]]:
    from pyimago._types import ImageInfo

    documents = native(_native.info, _native.info_awaited, path, format, chain, lock)
    return documents.then(lambda documents: [ImageInfo.from_document(document) for document in documents])


@verb
def convert(
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
) -> Plan[Converted]:
    """Write the content of an image as a new image, which appears at `target` once it is whole.

    It is read, unpacked, looked through for zeroes, packed and written on all cores, with less than 128 MiB
    of memory beside the caches of metadata.

    Args:
        source: The image to read, with its backing chain: a path, a storage, or an image that is open and
            stays so; one that was opened with `snapshot` is that snapshot. Nothing is written to it. Several
            in a list are one behind the other, each at a multiple of 512.
        target: The file to write. What is there is replaced at the end; it stays as it is after a failure.
            Or an image that is open for writing and at least as large: it is written from its start on where
            it stands, keeps what is behind, and after a failure is partly new. Or what has a method `write`:
            it gets the image first byte to last (raw or qcow2), and is not closed.
        source_format: The source's format; probed unless given. With an open source neither this nor
            `source_secret` may be given.
        format: The target's format, if it is new.
        implicit: Which files that the source (and `backing`) names may be opened, as in `open`.
        source_secret: What opens an encrypted source, as `secret` of `open`.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the conversion.
        target_is_zero: An open target reads as zeroes, all of it: none are written.
        layer: Into an open target: copy only what the source itself holds, and not what is below it.
        **options: How to copy: `compress`, `compression_level`, `sparse`, `threads`, `rate`, `salvage`,
            `bitmaps`, `offload`, `durable`, see `Copying`. How a new image is laid out: as `create` takes it,
            see `NewImage`. With `backing` (which is looked for beside the target) and `backing_format` only
            what the source itself holds is copied, and the rest is left to that backing file, which should
            show what the source's does.

    Raises:
        ImagoError: The source cannot be read as an image, or the target is in use.
        ValueError: Options exclude each other, or an open target is smaller than the source.
        OSError: A file cannot be read or written.
    """
    more = {"target_is_zero": target_is_zero, "layer": layer}
    return _converted(source, target, source_format, format, implicit, source_secret, progress, options, more)


@verb
def dd(
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
) -> Plan[Converted]:
    """As `convert`, of `count` blocks (None: all) of `block_size` bytes, behind the first `skip` ones.

    What passes the end of the disk is left out.
    """
    for name, number, least in (("block_size", block_size, 1), ("count", count, 0), ("skip", skip, 0)):
        if number is not None and index(number) < least:
            raise ValueError(f"{name} is {least} at least, not {number}")
    more = {"part": (skip * block_size, None if count is None else count * block_size)}
    return _converted(source, target, source_format, format, implicit, source_secret, progress, options, more)


def _converted(
    source: Sources,
    target: StrPath | SyncFormatAccess | FormatAccess | Stream,
    source_format: Format | None,
    format: Format,
    implicit: Implicit,
    source_secret: Secret | None,
    progress: Progress | None,
    options: Conversion,
    more: Mapping[str, object],
) -> Plan[Converted]:
    """`more` is what `how` has beside the options that convert and dd share."""
    from pyimago._types import Converted, parted

    how, layout = parted(options)
    how.update(more)
    return native(
        _native.convert,
        _native.convert_awaited,
        source,
        target,
        source_format,
        format,
        implicit,
        source_secret,
        progress,
        how,
        layout,
    ).then(lambda found: Converted.of(*found))


@verb
def check(
    path: Place,
    *,
    format: Format | None = None,
    repair: Repair = "none",
    deep: bool = False,
    data_file: DataFile | None = None,
    implicit: Implicit = "beside",
    lock: Lock = "auto",
    progress: Progress | None = None,
) -> Plan[CheckResult]:
    """Check the qcow2 image at `path`: is what its metadata says true?

    Args:
        path: The image's file, or a storage. Unless something is to be repaired nothing is written to it.
        format: Its format; probed unless given.
        repair: "leaks" gives back space that nothing uses; "all" makes refcounts and flags right, too. What
            cannot be repaired stays in the result. Either is safe at any loss of power.
        deep: Unpack every compressed cluster, too.
        data_file: A storage or path to use as the external data file instead of the one that the image names.
        implicit: Which files that the image names may be opened, as in `open`; only a data file is.
        lock: Which locks are taken, as in `open`; a repair needs them.
        progress: Called now and then with the bytes of tables done and all; what it raises ends the check.

    Raises:
        UnsupportedFeatureError: The image is raw: there is nothing to check.
        InvalidImageError: The header makes no sense.
        ImageLockedError: The image is in use, for a repair by anybody, otherwise by a writer.
        OSError: The file cannot be read, or for a repair written.
    """
    from pyimago._types import CheckResult

    return native(
        _native.check, _native.check_awaited, path, format, repair, deep, data_file, implicit, lock, progress
    ).then(lambda found: CheckResult.from_document(*found))


@verb
def compare(
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
) -> Plan[Comparison]:
    """Whether the images `first` and `second` show a guest the same bytes, on all cores.

    Args:
        first: An image, read with its backing chain: a path, a storage, or an image that is open and stays
            so (which takes neither format nor secret).
        second: Another.
        first_format: The first one's format; probed unless given.
        second_format: The second one's.
        strict: Sizes, and what is allocated or known to be zero, count too. Otherwise a longer disk is equal
            if its rest is zeroes.
        implicit: Which files that the images name may be opened, as in `open`.
        first_secret: What opens the first one if it is encrypted, as `secret` of `open`.
        second_secret: What opens the second one.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the comparison.

    Raises:
        ImagoError: A file cannot be read as an image.
        OSError: A file cannot be read.
    """
    from pyimago._types import Comparison

    return native(
        _native.compare,
        _native.compare_awaited,
        first,
        second,
        first_format,
        second_format,
        strict,
        implicit,
        first_secret,
        second_secret,
        progress,
    ).then(lambda found: Comparison(*found))


@verb
def hash(
    source: Source,
    *,
    format: Format | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> Plan[str]:
    """A hash of what a guest sees of `source`: 64 hexadecimal digits, on all cores.

    The source is a path, a storage, or an image that is open and stays so (which takes neither format nor
    secret).

    Equal content has an equal hash, whatever the formats and what is allocated; the disk's size counts, which
    qcow2 and LUKS round up to 512 bytes. Ranges that are known to be zero cost nothing. It is BLAKE3 over the
    size and the BLAKE3 digests of the blocks of 2 MiB that are not all zeroes, each after its number; the
    user guide has the exact definition ("Compare and hash").

    Raises:
        ImagoError: A file cannot be read as an image.
        OSError: A file cannot be read.
    """
    return native(_native.hash, _native.hash_awaited, source, format, implicit, secret, progress).then(
        bytes.hex
    )


@verb
def measure(
    source: Source | None = None,
    *,
    size: int | None = None,
    source_format: Format | None = None,
    format: Format = "raw",
    implicit: Implicit = "beside",
    source_secret: Secret | None = None,
    progress: Progress | None = None,
    **layout: Unpack[NewImage],
) -> Plan[Measurement]:
    """How large a file an image would need: a new one of `size`, or one with the content of `source`.

    Args:
        source: An image to convert, read with its backing chain: a path, a storage, or an image that is open
            and stays so (which takes neither format nor secret).
        size: Size of an empty disk in bytes, instead of a source.
        source_format: The source's format; probed unless given.
        format: The new image's format.
        implicit: Which files that the source names may be opened, as in `open`.
        source_secret: What opens an encrypted source, as `secret` of `open`.
        progress: Called with the bytes of the source's disk that were looked at, and all of them.
        **layout: Of a qcow2 image, as in `create`; an encrypted one needs no secret to be measured.

    Raises:
        ValueError: Source and size are both given, or neither; or the layout is impossible.
        ImagoError: The source cannot be read as an image.
        OSError: A file cannot be read.
    """
    from pyimago._types import Measurement

    return native(
        _native.measure,
        _native.measure_awaited,
        source,
        size,
        source_format,
        format,
        implicit,
        source_secret,
        progress,
        layout,
    ).then(lambda found: Measurement(*found))


@verb
def amend(
    path: Place,
    *,
    format: Format | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    force: bool = False,
    opened_backing: Backing | Literal["implicit"] | None = "implicit",
    opened_data_file: DataFile | None = None,
    progress: Progress | None = None,
    **changes: Unpack[Amendment],
) -> Plan[None]:
    """Change what the image at `path` is and which files it names; what it holds stays the same.

    Nobody else may have the image open. What cannot be done is refused before the file is touched; after a
    crash the image is the old or the new one, with lost space at worst. A new `backing` is not looked at: it
    has to show the same bytes as the old one did, or the guest sees others.

    Args:
        path: The image: a file, or a storage that is open for writing.
        format: Its format; probed unless given.
        implicit: Which files that the image names may be opened, as in `open`; only a new `size` needs them.
        secret: What opens an encrypted image; a new `size` needs it, and a key slot that is made.
        force: Erase the last active key slot, too: nobody ever reads the disk again. And wipe one again that
            is erased already.
        opened_backing: For a new `size`: an open image to use below it instead of the backing file that it
            names, or None for nothing.
        opened_data_file: For a new `size`: a storage or path to use as its data file.
        progress: Called now and then with the bytes of tables that are done and all of them; what it raises
            ends the work, with the image as it was.
        **changes: What is to change. Of a qcow2 image: `version`, `lazy_refcounts`, `refcount_bits`,
            `backing`, `backing_format`, `data_file`, `data_file_raw`, `size`. Of one that is encrypted with
            LUKS, and of a LUKS image: `keyslot_state`, `keyslot`, `new_secret`, `old_secret`, `iter_time`,
            `iterations`. See `Amendment`. A key slot, the header and the size are three steps, each whole or
            not there after a crash.

    Raises:
        ValueError: A value is out of its range, or the changes exclude each other or do not go with the
            image.
        WrongSecretError: `secret` does not open the image, or `old_secret` no key slot, or not `keyslot`.
        UnsupportedFeatureError: The new version cannot have what the image has, or the image has to be
            repaired first.
        ImageLockedError: The image is in use.
        ImagoError: It is no image that can be amended.
        OSError: The file cannot be read or written.
    """
    return native(
        _native.amend,
        _native.amend_awaited,
        path,
        format,
        implicit,
        secret,
        force,
        opened_backing,
        opened_data_file,
        progress,
        changes,
    )


@verb
def rebase(
    path: Place,
    backing: StrPath | None,
    *,
    backing_format: str | None = None,
    format: Format | None = None,
    unsafe: bool = False,
    compress: bool = False,
    compression_level: int | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    opened_backing: Backing | Literal["implicit"] | None = "implicit",
    opened_data_file: DataFile | None = None,
    direct: bool = False,
    lock: Lock = "auto",
    progress: Progress | None = None,
) -> Plan[None]:
    """Put another backing file below the image at `path`; what a guest sees stays the same.

    Where the new backing file has something else than the old one, the image gets what it showed; what both
    share is neither read nor copied. First all that is made durable, then the header changes in one step:
    whatever ends it in between, the image shows what it showed, and it can be done again. Nobody else may
    have the image open.

    Args:
        path: The image: a file, or a storage that is open for writing.
        backing: The new backing file, as the image is to spell it; a relative name starts at the image's
            directory. None: no backing file, the image stands alone afterwards.
        backing_format: Its format, as the image is to spell it; probed unless given.
        format: The image's format; probed unless given.
        unsafe: Change the name and nothing else: for a backing file that was moved or has the same content.
            No other file is looked at.
        compress: Write what the image gets in compressed clusters.
        compression_level: As in `convert`.
        implicit: Which files that the images name may be opened, as in `open`. `backing` itself is your word.
        secret: What opens encrypted images, the new backing file among them, as in `open`.
        opened_backing: An open image that the image is over so far, instead of the backing file that it
            names, or None for nothing.
        opened_data_file: A storage or path to use as the image's external data file.
        direct: Open files past the page cache (`O_DIRECT`).
        lock: "off" takes no locks for the backing files, old and new; the image is always locked.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the work.

    Raises:
        ImagoError: A file cannot be read as an image, the image is in use, or it would be below itself.
        OSError: A file cannot be read or written.
    """
    return native(
        _native.rebase,
        _native.rebase_awaited,
        path,
        backing,
        backing_format,
        format,
        unsafe,
        compress,
        compression_level,
        implicit,
        secret,
        opened_backing,
        opened_data_file,
        direct,
        lock,
        progress,
    )


@verb
def commit(
    path: Source,
    *,
    base: StrPath | None = None,
    format: Format | None = None,
    keep: bool = False,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    rate_limit: int | None = None,
    progress: Progress | None = None,
) -> Plan[None]:
    """Write what the image at `path` holds into the image below it, and empty it.

    What a guest sees of the image stays the same. The image below grows to its size, if that is larger, and
    never shrinks. All is durable below before the image is emptied, in one step: whatever ends it in between,
    the image shows what it showed, and it can be done again. Nobody else may have the two open. Other images
    above the one that is written to show something else afterwards: they are lost.

    Args:
        path: The image: a path, a storage (which is open for writing unless `keep`), or an image that is open
            and stays so. That goes into the topmost image below it that is open for writing, see `backing`
            and `write_backing` of `open`, and takes neither base nor format nor secret.
        base: The image to write to: as the image above it spells its name, or its path. None: the one right
            below. What the images between hold goes into it, too. They are of no use by themselves
            afterwards, and the image is not emptied, as what they hold would show.
        format: The image's format; probed unless given.
        keep: Leave the image as it is; it is only read then.
        implicit: Which files that the images name may be opened, as in `open`; `base` is one of them.
        secret: What opens encrypted images, as in `open`.
        rate_limit: Bytes to write in a second, at most.
        progress: Called now and then with the bytes done and all bytes; what it raises ends the work.

    Raises:
        ValueError: The image has no backing file, or `base` is not below it. Nothing was touched.
        ImagoError: A file cannot be read or written as an image, or is in use.
        OSError: A file cannot be read or written.
    """
    return native(
        _native.commit,
        _native.commit_awaited,
        path,
        base,
        format,
        keep,
        implicit,
        secret,
        rate_limit,
        progress,
    )


@verb
def resize(
    path: Place,
    size: int,
    *,
    format: Format | None = None,
    shrink: bool = False,
    preallocation: Preallocation = "off",
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> Plan[None]:
    """Make the disk of the image at `path` `size` bytes long; durable at the end.

    What is new reads as zeroes, whatever the backing file has there.

    Args:
        path: The image, which nobody else may have open.
        size: In bytes; of qcow2 a multiple of 512.
        format: The image's format; probed unless given.
        shrink: Allow a smaller size: what is behind it is lost.
        preallocation: What is set aside for what is new.
        implicit: Which files that the image names may be opened, as in `open`.
        secret: What opens it if it is encrypted, as in `open`.
        progress: Called now and then with the bytes that are set aside and all of them, or, where the disk
            shrinks, with the bytes of tables that were gone through; what it raises ends the work. A disk
            that was to grow has its old size then. One that was to shrink has its new one; the same once more
            gives the rest of its space back.

    Raises:
        ValueError: A size that cannot be, or a smaller one without `shrink`. Nothing was touched.
        UnsupportedFeatureError: The image keeps its size; the message says why.
        ImagoError: A file cannot be read as an image, or is in use.
        OSError: A file cannot be read or written.
    """

    def do(image: Image) -> Awaitable[None] | None:
        if not shrink and 0 <= index(size) < image.size:
            raise shrinks(image.filename, image.size, size)
        return image.resize(size, preallocation=preallocation, progress=progress)

    return within(path, do, backing="implicit", format=format, implicit=implicit, secret=secret)


@verb
def map(
    path: Place,
    offset: int = 0,
    length: int | None = None,
    *,
    format: Format | None = None,
    snapshot: str | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    progress: Progress | None = None,
) -> Plan[list[Extent]]:
    """Where the bytes of the image at `path` are: what `qemu-img map` tells, as a list.

    Of an untrusted image, or one with very many extents, an open image's `extents` is better: it does not
    gather them. A file of 1 MB can have a billion of them, for which no memory is enough.

    Args:
        path: The image, with its backing chain.
        offset: Where to begin, in bytes of the guest's disk.
        length: How many bytes to look at; None: all.
        format: The image's format; probed unless given.
        snapshot: Look at what the disk was when that snapshot was taken, as in `open`.
        implicit: Which files that the images name may be opened, as in `open`.
        secret: What opens encrypted images, as in `open`.
        progress: Called now and then with the bytes looked at and all bytes; what it raises ends the work.

    Raises:
        ValueError: The range passes the end of the disk.
        ImagoError: A file cannot be read as an image, or is in use.
        OSError: A file cannot be read.
    """
    return native(
        _native.map, _native.map_awaited, path, offset, length, format, snapshot, implicit, secret, progress
    )


@verb
def bench(
    path: Source,
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
) -> Plan[BenchResult]:
    """How fast the image at `path` is: `count` requests, `depth` of them at a time, as `qemu-img bench`.

    Requests are those of the engine, each on a thread of its own: Python has no part in what is measured, nor
    have opening and closing.

    Args:
        path: The image, with its backing chain: a path, a storage, or an image that is open and stays so
            (which takes neither format nor secret).
        write: Write instead of reading: the content is overwritten!
        count: Requests.
        depth: Requests under way at a time, at most 1024.
        request_size: Bytes of a request.
        offset: Where the first one starts.
        step: From the start of one to that of the next, in bytes; None: `request_size`. Behind the disk's end
            it goes on at its start.
        pattern: The byte to write.
        flush_interval: After so many writes all is made durable; None: not at all, and the
            system has what was written until it likes, but for metadata.
        drain: Writes wait for that, and it for them; otherwise they go on meanwhile.
        direct: Bypass the page cache (`O_DIRECT`).
        lock: Which locks are taken, as in `open`.
        format: The image's format; probed unless given.
        implicit: Which files that the images name may be opened, as in `open`.
        secret: What opens encrypted images, as in `open`.
        progress: Called now and then with the bytes done and all bytes; what it raises ends it.

    Raises:
        ValueError: An option cannot be, or a request passes the end of the disk.
        ImagoError: A file cannot be read as an image, or is in use.
        OSError: A file cannot be read or written.
    """
    from pyimago._types import BenchResult

    return native(
        _native.bench,
        _native.bench_awaited,
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
    ).then(lambda seconds: BenchResult(write, count, request_size, depth, seconds))
