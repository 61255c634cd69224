"""Every verb is written once, as a `Plan`; its two faces carry that out, one at once, one awaited."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar, cast

from pyimago import _native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from typing import Any, Literal, TypeAlias

    from typing_extensions import Unpack

    from pyimago._native import FormatAccess, SyncFormatAccess
    from pyimago._types import OpenOptions, Place

    Image: TypeAlias = SyncFormatAccess | FormatAccess

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

_AWAITED = "Awaited: cancelling the task ends it as soon as that is safe; functions run on another thread."


class Plan(Generic[R]):
    """What a verb does: `now`, on the calling thread, or `later`, awaited."""

    def __init__(self, now: Callable[[], R], later: Callable[[], Awaitable[R]]) -> None:
        self.now = now
        self.later = later

    def then(self, make: Callable[[R], S]) -> Plan[S]:
        """The same, and what `make` makes of what it came to."""

        async def later() -> S:
            return make(await self.later())

        return Plan(lambda: make(self.now()), later)


def native(
    now: Callable[P, R], later: Callable[P, Awaitable[R]], *args: P.args, **options: P.kwargs
) -> Plan[R]:
    """A verb of the engine's, by its two functions."""
    return Plan(partial(now, *args, **options), partial(later, *args, **options))


def within(
    path: Place,
    do: Callable[[Image], R | Awaitable[R] | Plan[R]],
    *,
    write: bool = True,
    backing: Literal["implicit"] | None = None,
    **options: Unpack[OpenOptions],
) -> Plan[R]:
    """What `do` does with the image at `path`, of either class, which is open meanwhile."""

    def now() -> R:
        with _native.open(path, write=write, backing=backing, **options) as image:
            done = do(image)
            return cast("R", done.now() if isinstance(done, Plan) else done)

    async def later() -> R:
        start = partial(_native.open_awaited, path, write=write, backing=backing, **options)
        async with Opening(start) as image:
            done = do(image)
            return await cast("Awaitable[R]", done.later() if isinstance(done, Plan) else done)

    return Plan(now, later)


class Opening:
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


def opening(start: Callable[P, Awaitable[FormatAccess]]) -> Callable[P, Opening]:
    """The awaited face of `open`, which `start` carries out."""

    @wraps(_native.open)
    def open(*args: P.args, **options: P.kwargs) -> Opening:
        return Opening(partial(start, *args, **options))

    _, _, arguments = (_native.open.__doc__ or "").partition("\n\n")
    open.__module__ = "pyimago.aio"
    open.__doc__ = f"""Open the image at `path` with what it names, for awaited use.

`await` the result for a `FormatAccess`, or use it in `async with`. Functions run on another thread.

{arguments}"""
    return open


def verb(plan: Callable[P, Plan[R]]) -> Callable[P, R]:
    """The synchronous face of the verb that `plan` plans."""
    # `help`, tracebacks and pickle call it what a program calls it, and what it returns what a program gets.
    plan.__module__ = plan.__module__.removesuffix("._verbs")
    plan.__annotations__["return"] = plan.__annotations__["return"].removeprefix("Plan[").removesuffix("]")

    @wraps(plan)
    def now(*args: P.args, **options: P.kwargs) -> R:
        return plan(*args, **options).now()

    return now


def awaited(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The awaited face of `verb`, for the module of the same name in `pyimago.aio`."""
    plan: Callable[P, Plan[R]] = verb.__wrapped__  # type: ignore[attr-defined]

    @wraps(plan)
    async def later(*args: P.args, **options: P.kwargs) -> R:
        return await plan(*args, **options).later()

    later.__module__ = plan.__module__.replace("pyimago", "pyimago.aio", 1)
    doc = plan.__doc__ or ""
    margin = doc[len(doc.rstrip(" ")) :]  # none from Python 3.13 on
    later.__doc__ = f"{doc.rstrip()}\n\n{margin}{_AWAITED}"
    return later
