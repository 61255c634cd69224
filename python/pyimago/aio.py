"""The same verbs, awaited: `async with pyimago.aio.open("image.qcow2") as image:`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pyimago import _native

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from pyimago._types import Backing, DataFile, Format, Implicit, StrPath

__all__ = ["open"]


class _Opening:
    """An image that is being opened: `await` it, or use it in `async with`, which closes the image at the end."""

    def __init__(
        self,
        path: StrPath,
        write: bool,
        format: Format | None,
        backing: Backing | Literal["implicit"] | None,
        data_file: DataFile | None,
        implicit: Implicit,
    ) -> None:
        self._arguments = (path, write, format, backing, data_file, implicit)
        self._image: _native.FormatAccess | None = None

    def __await__(self) -> Generator[object, None, _native.FormatAccess]:
        path, write, format_, backing, data_file, implicit = self._arguments
        return _native.open_awaited(
            path, write=write, format=format_, backing=backing, data_file=data_file, implicit=implicit
        ).__await__()

    async def __aenter__(self) -> _native.FormatAccess:
        self._image = await self
        return self._image

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._image is not None:
            await self._image.close()


def open(
    path: StrPath,
    *,
    write: bool = False,
    format: Format | None = None,
    backing: Backing | Literal["implicit"] | None = "implicit",
    data_file: DataFile | None = None,
    implicit: Implicit = "beside",
) -> _Opening:
    """Open the image at `path` as `pyimago.open` does; the image's operations are awaited.

    `await` the result for a `FormatAccess`, or use it in `async with`. A function given as `implicit` is called on
    another thread.
    """
    return _Opening(path, write, format, backing, data_file, implicit)
