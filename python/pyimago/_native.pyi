from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, final

from typing_extensions import Buffer, disjoint_base

from pyimago._file import ImageFile
from pyimago._types import (
    Backing,
    CacheStats,
    DataFile,
    Format,
    Implicit,
    Lock,
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
    "AsyncBitmaps",
    "AsyncDirtyIterator",
    "AsyncExtentIterator",
    "AsyncSnapshots",
    "Bitmap",
    "Bitmaps",
    "CompletedFuture",
    "DirtyIterator",
    "Disk",
    "Extent",
    "ExtentIterator",
    "File",
    "FormatAccess",
    "Memory",
    "Null",
    "Qcow2",
    "Raw",
    "Slice",
    "Snapshot",
    "Snapshots",
    "Storage",
    "StorageOpenOptions",
    "SyncFormatAccess",
    "Throttled",
    "add_key",
    "add_key_awaited",
    "amend",
    "amend_awaited",
    "bench",
    "bench_awaited",
    "change_key",
    "change_key_awaited",
    "check",
    "check_awaited",
    "commit",
    "commit_awaited",
    "compare",
    "compare_awaited",
    "convert",
    "convert_awaited",
    "create",
    "create_awaited",
    "erase_key",
    "erase_key_awaited",
    "hash",
    "hash_awaited",
    "info",
    "info_awaited",
    "map",
    "map_awaited",
    "measure",
    "measure_awaited",
    "open",
    "open_awaited",
    "rebase",
    "rebase_awaited",
]

_T_co = TypeVar("_T_co", covariant=True)

@final
class CompletedFuture(Generic[_T_co]):
    _asyncio_future_blocking: ClassVar[bool]
    def __await__(self) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> None: ...
    def result(self) -> _T_co: ...
    def exception(self) -> None: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self, msg: object = None) -> bool: ...
    def get_loop(self) -> AbstractEventLoop: ...
    def add_done_callback(
        self, callback: Callable[[Self], object], /, *, context: Context | None = None
    ) -> None: ...
    def remove_done_callback(self, callback: Callable[[Self], object], /) -> int: ...

@final
class Extent:
    __match_args__ = (
        "offset",
        "length",
        "data",
        "zero",
        "allocated",
        "compressed",
        "depth",
        "host_file",
        "host_offset",
    )
    def __new__(
        cls,
        offset: int,
        length: int,
        data: bool,
        zero: bool,
        allocated: bool,
        compressed: bool = False,
        depth: int = 0,
        host_file: StrPath | None = None,
        host_offset: int | None = None,
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[object, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def data(self) -> bool: ...
    @property
    def zero(self) -> bool: ...
    @property
    def allocated(self) -> bool: ...
    @property
    def compressed(self) -> bool: ...
    @property
    def depth(self) -> int: ...
    @property
    def host_file(self) -> str | None: ...
    @property
    def host_offset(self) -> int | None: ...
    def to_dict(self) -> dict[str, Any]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class ExtentIterator:
    def __iter__(self) -> Self: ...
    def __next__(self) -> Extent: ...

@final
class AsyncExtentIterator:
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Extent]: ...

@final
class Bitmap:
    __match_args__ = ("name", "granularity", "flags", "count")
    def __new__(
        cls, name: str, granularity: int, flags: list[Literal["in-use", "auto"]], count: int | None
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[object, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def granularity(self) -> int: ...
    @property
    def flags(self) -> list[Literal["in-use", "auto"]]: ...
    @property
    def count(self) -> int | None: ...
    def to_dict(self) -> dict[str, Any]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class DirtyIterator:
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, int]: ...

@final
class AsyncDirtyIterator:
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[tuple[int, int]]: ...

@final
class Bitmaps:
    def list(self) -> list[Bitmap]: ...
    def add(self, name: str, *, granularity: int | None = None, enabled: bool = True) -> None: ...
    def remove(self, name: str) -> None: ...
    def clear(self, name: str) -> None: ...
    def enable(self, name: str) -> None: ...
    def disable(self, name: str) -> None: ...
    def merge(
        self, target: str, source: str, *, image: SyncFormatAccess | FormatAccess | None = None
    ) -> None: ...
    def ranges(self, name: str) -> DirtyIterator: ...

@final
class AsyncBitmaps:
    def list(self) -> Awaitable[list[Bitmap]]: ...
    def add(self, name: str, *, granularity: int | None = None, enabled: bool = True) -> Awaitable[None]: ...
    def remove(self, name: str) -> Awaitable[None]: ...
    def clear(self, name: str) -> Awaitable[None]: ...
    def enable(self, name: str) -> Awaitable[None]: ...
    def disable(self, name: str) -> Awaitable[None]: ...
    def merge(
        self, target: str, source: str, *, image: SyncFormatAccess | FormatAccess | None = None
    ) -> Awaitable[None]: ...
    def ranges(self, name: str) -> AsyncDirtyIterator: ...

@final
class Snapshot:
    __match_args__ = (
        "id",
        "name",
        "vm_state_size",
        "date_sec",
        "date_nsec",
        "vm_clock_sec",
        "vm_clock_nsec",
    )
    def __new__(
        cls,
        id: str,
        name: str,
        vm_state_size: int = 0,
        date_sec: int = 0,
        date_nsec: int = 0,
        vm_clock_sec: int = 0,
        vm_clock_nsec: int = 0,
        icount: int | None = None,
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[object, ...]: ...
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def vm_state_size(self) -> int: ...
    @property
    def date_sec(self) -> int: ...
    @property
    def date_nsec(self) -> int: ...
    @property
    def vm_clock_sec(self) -> int: ...
    @property
    def vm_clock_nsec(self) -> int: ...
    @property
    def icount(self) -> int | None: ...
    def to_dict(self) -> dict[str, Any]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Snapshots:
    def list(self) -> list[Snapshot]: ...
    def create(self, name: str, *, id: str | None = None) -> Snapshot: ...
    def apply(self, snapshot: str) -> None: ...
    def delete(self, snapshot: str) -> None: ...
    def rename(self, snapshot: str, name: str) -> None: ...

@final
class AsyncSnapshots:
    def list(self) -> Awaitable[list[Snapshot]]: ...
    def create(self, name: str, *, id: str | None = None) -> Awaitable[Snapshot]: ...
    def apply(self, snapshot: str) -> Awaitable[None]: ...
    def delete(self, snapshot: str) -> Awaitable[None]: ...
    def rename(self, snapshot: str, name: str) -> Awaitable[None]: ...

@final
class StorageOpenOptions:
    def __new__(
        cls,
        *,
        filename: StrPath,
        write: bool = False,
        direct: bool = False,
        lock: Lock = "auto",
        durable: bool = True,
    ) -> Self: ...
    @property
    def filename(self) -> str | None: ...
    @property
    def write(self) -> bool: ...
    @property
    def direct(self) -> bool: ...
    @property
    def lock(self) -> Lock: ...
    @property
    def durable(self) -> bool: ...

@disjoint_base
class Storage:
    @property
    def size(self) -> int: ...
    @property
    def filename(self) -> str | None: ...

@final
class File(Storage):
    @staticmethod
    def open(options: StorageOpenOptions) -> Awaitable[File]: ...
    @staticmethod
    def open_sync(options: StorageOpenOptions) -> File: ...

@final
class Null(Storage):
    def __new__(cls, size: int = 0) -> Self: ...

@final
class Memory(Storage):
    def __new__(cls, content: int | Buffer | None = None) -> Self: ...
    def getvalue(self) -> bytes: ...

@final
class Disk(Storage):
    def __new__(cls, image: SyncFormatAccess | FormatAccess) -> Self: ...

@final
class Slice(Storage):
    def __new__(cls, storage: Storage, *, offset: int = 0, size: int | None = None) -> Self: ...

@final
class Throttled(Storage):
    def __new__(cls, storage: Storage, *, latency: float) -> Self: ...

@final
class Raw:
    @staticmethod
    def open_path_sync(path: StrPath, *, write: bool = False) -> Raw: ...
    @staticmethod
    def open_path(path: StrPath, *, write: bool = False) -> Awaitable[Raw]: ...
    @staticmethod
    def open_image_sync(storage: Storage, *, write: bool = False) -> Raw: ...
    @staticmethod
    def open_image(storage: Storage, *, write: bool = False) -> Awaitable[Raw]: ...

@final
class Qcow2:
    @staticmethod
    def open_path_sync(
        path: StrPath,
        *,
        write: bool = False,
        secret: Secret | None = None,
        snapshot: str | None = None,
        l2_cache_size: int | None = None,
        refcount_cache_size: int | None = None,
    ) -> Qcow2: ...
    @staticmethod
    def open_path(
        path: StrPath,
        *,
        write: bool = False,
        secret: Secret | None = None,
        snapshot: str | None = None,
        l2_cache_size: int | None = None,
        refcount_cache_size: int | None = None,
    ) -> Awaitable[Qcow2]: ...
    @staticmethod
    def open_image_sync(
        storage: Storage,
        *,
        write: bool = False,
        secret: Secret | None = None,
        snapshot: str | None = None,
        l2_cache_size: int | None = None,
        refcount_cache_size: int | None = None,
    ) -> Qcow2: ...
    @staticmethod
    def open_image(
        storage: Storage,
        *,
        write: bool = False,
        secret: Secret | None = None,
        snapshot: str | None = None,
        l2_cache_size: int | None = None,
        refcount_cache_size: int | None = None,
    ) -> Awaitable[Qcow2]: ...
    def set_backing(self, backing: Backing | None) -> None: ...
    def set_cache_sizes(
        self, *, l2_cache_size: int | None = None, refcount_cache_size: int | None = None
    ) -> None: ...
    def set_data_file(self, data_file: Storage) -> None: ...
    def open_implicit_dependencies_sync(self, *, implicit: Implicit = "beside") -> None: ...
    def open_implicit_dependencies(self, *, implicit: Implicit = "beside") -> Awaitable[None]: ...

@final
class SyncFormatAccess:
    def __new__(cls, image: Raw | Qcow2) -> Self: ...
    def read(self, buf: Buffer, offset: int) -> None: ...
    def readv(self, bufs: Iterable[Buffer], offset: int) -> None: ...
    def pread(self, length: int, offset: int) -> bytes: ...
    def read_many(self, requests: Iterable[tuple[Buffer, int]]) -> None: ...
    def write(self, data: Buffer, offset: int) -> None: ...
    def writev(self, bufs: Iterable[Buffer], offset: int) -> None: ...
    def write_many(self, requests: Iterable[tuple[Buffer, int]]) -> None: ...
    def write_compressed(self, data: Buffer, offset: int, *, level: int | None = None) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def extents(self, offset: int = 0, length: int | None = None) -> ExtentIterator: ...
    def cache_stats(self) -> CacheStats | None: ...
    def flush(self) -> None: ...
    def close(self, *, durable: bool = True) -> None: ...
    def file(self) -> ImageFile: ...
    def resize(
        self, size: int, *, preallocation: Preallocation = "off", progress: Progress | None = None
    ) -> None: ...
    @property
    def bitmaps(self) -> Bitmaps: ...
    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def size(self) -> int: ...
    @property
    def format(self) -> Format: ...
    @property
    def filename(self) -> str | None: ...
    @property
    def writable(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

@final
class FormatAccess:
    def __new__(cls, image: Raw | Qcow2) -> Self: ...
    def read(self, buf: Buffer, offset: int) -> Awaitable[None]: ...
    def readv(self, bufs: Iterable[Buffer], offset: int) -> Awaitable[None]: ...
    def pread(self, length: int, offset: int) -> Awaitable[bytes]: ...
    def read_many(self, requests: Iterable[tuple[Buffer, int]]) -> Awaitable[None]: ...
    def write(self, data: Buffer, offset: int) -> Awaitable[None]: ...
    def writev(self, bufs: Iterable[Buffer], offset: int) -> Awaitable[None]: ...
    def write_many(self, requests: Iterable[tuple[Buffer, int]]) -> Awaitable[None]: ...
    def write_compressed(self, data: Buffer, offset: int, *, level: int | None = None) -> Awaitable[None]: ...
    def write_zeroes(self, offset: int, length: int) -> Awaitable[None]: ...
    def discard(self, offset: int, length: int) -> Awaitable[None]: ...
    def extents(self, offset: int = 0, length: int | None = None) -> AsyncExtentIterator: ...
    def cache_stats(self) -> CacheStats | None: ...
    def flush(self) -> Awaitable[None]: ...
    def close(self, *, durable: bool = True) -> Awaitable[None]: ...
    def resize(
        self, size: int, *, preallocation: Preallocation = "off", progress: Progress | None = None
    ) -> Awaitable[None]: ...
    @property
    def bitmaps(self) -> AsyncBitmaps: ...
    @property
    def snapshots(self) -> AsyncSnapshots: ...
    @property
    def size(self) -> int: ...
    @property
    def format(self) -> Format: ...
    @property
    def filename(self) -> str | None: ...
    @property
    def writable(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Awaitable[None]: ...

def open(
    path: Place,
    *,
    write: bool = False,
    format: Format | None = None,
    snapshot: str | None = None,
    backing: Backing | Literal["implicit"] | None = "implicit",
    write_backing: bool | StrPath = False,
    data_file: DataFile | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    lock: Lock = "auto",
    direct: bool = False,
    l2_cache_size: int | None = None,
    refcount_cache_size: int | None = None,
) -> SyncFormatAccess: ...
def open_awaited(
    path: Place,
    *,
    write: bool = False,
    format: Format | None = None,
    snapshot: str | None = None,
    backing: Backing | Literal["implicit"] | None = "implicit",
    write_backing: bool | StrPath = False,
    data_file: DataFile | None = None,
    implicit: Implicit = "beside",
    secret: Secret | None = None,
    lock: Lock = "auto",
    direct: bool = False,
    l2_cache_size: int | None = None,
    refcount_cache_size: int | None = None,
) -> Awaitable[FormatAccess]: ...
def create(
    path: StrPath,
    size: int | None,
    format: Format,
    layout: Mapping[str, object],
    overwrite: bool,
    unchecked: bool,
    progress: Progress | None,
) -> None: ...
def create_awaited(
    path: StrPath,
    size: int | None,
    format: Format,
    layout: Mapping[str, object],
    overwrite: bool,
    unchecked: bool,
    progress: Progress | None,
) -> Awaitable[None]: ...
def info(path: Place, format: Format | None, chain: Implicit | None, lock: Lock) -> list[dict[str, Any]]: ...
def info_awaited(
    path: Place, format: Format | None, chain: Implicit | None, lock: Lock
) -> Awaitable[list[dict[str, Any]]]: ...
def convert(
    source: Sources,
    target: StrPath | SyncFormatAccess | FormatAccess | Stream,
    source_format: Format | None,
    format: Format,
    implicit: Implicit,
    source_secret: Secret | None,
    progress: Progress | None,
    how: Mapping[str, object],
    layout: Mapping[str, object],
) -> tuple[list[tuple[int, int]], list[str]]: ...
def convert_awaited(
    source: Sources,
    target: StrPath | SyncFormatAccess | FormatAccess | Stream,
    source_format: Format | None,
    format: Format,
    implicit: Implicit,
    source_secret: Secret | None,
    progress: Progress | None,
    how: Mapping[str, object],
    layout: Mapping[str, object],
) -> Awaitable[tuple[list[tuple[int, int]], list[str]]]: ...
def check(
    path: Place,
    format: Format | None,
    repair: Repair,
    deep: bool,
    data_file: DataFile | None,
    implicit: Implicit,
    lock: Lock,
    progress: Progress | None,
) -> tuple[dict[str, Any], list[tuple[str, str, int | None, int | None, str]]]: ...
def check_awaited(
    path: Place,
    format: Format | None,
    repair: Repair,
    deep: bool,
    data_file: DataFile | None,
    implicit: Implicit,
    lock: Lock,
    progress: Progress | None,
) -> Awaitable[tuple[dict[str, Any], list[tuple[str, str, int | None, int | None, str]]]]: ...
def compare(
    first: Source,
    second: Source,
    first_format: Format | None,
    second_format: Format | None,
    strict: bool,
    implicit: Implicit,
    first_secret: Secret | None,
    second_secret: Secret | None,
    progress: Progress | None,
) -> tuple[Literal["size", "status", "content"] | None, int | None, bool]: ...
def compare_awaited(
    first: Source,
    second: Source,
    first_format: Format | None,
    second_format: Format | None,
    strict: bool,
    implicit: Implicit,
    first_secret: Secret | None,
    second_secret: Secret | None,
    progress: Progress | None,
) -> Awaitable[tuple[Literal["size", "status", "content"] | None, int | None, bool]]: ...
def hash(
    source: Source,
    format: Format | None,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> bytes: ...
def hash_awaited(
    source: Source,
    format: Format | None,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> Awaitable[bytes]: ...
def add_key(
    path: StrPath,
    format: Format | None,
    secret: Secret,
    new_secret: Secret,
    slot: int | None,
    iter_time: int | None,
    iterations: int | None,
) -> int: ...
def add_key_awaited(
    path: StrPath,
    format: Format | None,
    secret: Secret,
    new_secret: Secret,
    slot: int | None,
    iter_time: int | None,
    iterations: int | None,
) -> Awaitable[int]: ...
def change_key(
    path: StrPath,
    format: Format | None,
    secret: Secret,
    new_secret: Secret,
    iter_time: int | None,
    iterations: int | None,
) -> int: ...
def change_key_awaited(
    path: StrPath,
    format: Format | None,
    secret: Secret,
    new_secret: Secret,
    iter_time: int | None,
    iterations: int | None,
) -> Awaitable[int]: ...
def erase_key(
    path: StrPath, format: Format | None, secret: Secret | None, slot: int | None, force: bool
) -> list[int]: ...
def erase_key_awaited(
    path: StrPath, format: Format | None, secret: Secret | None, slot: int | None, force: bool
) -> Awaitable[list[int]]: ...
def measure(
    source: Source | None,
    size: int | None,
    source_format: Format | None,
    format: Format,
    implicit: Implicit,
    source_secret: Secret | None,
    progress: Progress | None,
    layout: Mapping[str, object],
) -> tuple[int, int, int | None]: ...
def measure_awaited(
    source: Source | None,
    size: int | None,
    source_format: Format | None,
    format: Format,
    implicit: Implicit,
    source_secret: Secret | None,
    progress: Progress | None,
    layout: Mapping[str, object],
) -> Awaitable[tuple[int, int, int | None]]: ...
def amend(
    path: Place,
    format: Format | None,
    implicit: Implicit,
    secret: Secret | None,
    force: bool,
    opened_backing: Backing | Literal["implicit"] | None,
    opened_data_file: DataFile | None,
    progress: Progress | None,
    changes: Mapping[str, object],
) -> None: ...
def amend_awaited(
    path: Place,
    format: Format | None,
    implicit: Implicit,
    secret: Secret | None,
    force: bool,
    opened_backing: Backing | Literal["implicit"] | None,
    opened_data_file: DataFile | None,
    progress: Progress | None,
    changes: Mapping[str, object],
) -> Awaitable[None]: ...
def rebase(
    path: Place,
    backing: StrPath | None,
    backing_format: str | None,
    format: Format | None,
    name_only: bool,
    compress: bool,
    level: int | None,
    implicit: Implicit,
    secret: Secret | None,
    opened_backing: Backing | Literal["implicit"] | None,
    opened_data_file: DataFile | None,
    direct: bool,
    lock: Lock,
    progress: Progress | None,
) -> None: ...
def rebase_awaited(
    path: Place,
    backing: StrPath | None,
    backing_format: str | None,
    format: Format | None,
    name_only: bool,
    compress: bool,
    level: int | None,
    implicit: Implicit,
    secret: Secret | None,
    opened_backing: Backing | Literal["implicit"] | None,
    opened_data_file: DataFile | None,
    direct: bool,
    lock: Lock,
    progress: Progress | None,
) -> Awaitable[None]: ...
def commit(
    path: Source,
    base: StrPath | None,
    format: Format | None,
    keep: bool,
    implicit: Implicit,
    secret: Secret | None,
    rate_limit: int | None,
    progress: Progress | None,
) -> None: ...
def commit_awaited(
    path: Source,
    base: StrPath | None,
    format: Format | None,
    keep: bool,
    implicit: Implicit,
    secret: Secret | None,
    rate_limit: int | None,
    progress: Progress | None,
) -> Awaitable[None]: ...
def bench(
    path: Source,
    format: Format | None,
    pattern: int | None,
    count: int,
    depth: int,
    request_size: int,
    offset: int,
    step: int,
    flush_interval: int | None,
    drain: bool,
    direct: bool,
    lock: Lock,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> float: ...
def bench_awaited(
    path: Source,
    format: Format | None,
    pattern: int | None,
    count: int,
    depth: int,
    request_size: int,
    offset: int,
    step: int,
    flush_interval: int | None,
    drain: bool,
    direct: bool,
    lock: Lock,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> Awaitable[float]: ...
def map(
    path: Place,
    offset: int,
    length: int | None,
    format: Format | None,
    snapshot: str | None,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> list[Extent]: ...
def map_awaited(
    path: Place,
    offset: int,
    length: int | None,
    format: Format | None,
    snapshot: str | None,
    implicit: Implicit,
    secret: Secret | None,
    progress: Progress | None,
) -> Awaitable[list[Extent]]: ...
