"""How far a long command is: a bar at a terminal, qemu-img's line elsewhere, JSON for programs; SIGUSR1."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterable, Iterator, MutableMapping
    from typing import Any, NoReturn

    from tqdm.std import tqdm

    from pyimago import Extent
    from pyimago._types import Progress

UNASKED_AFTER = 0.5
"""Seconds that a command takes before a bar comes without `-p`."""
EXTENTS_INTERVAL = 0.05
"""Seconds between two looks at how far a walk through extents is: a look costs more than an extent."""
JSON_INTERVAL = 0.1
"""Seconds between two lines, but for the first and the last."""
REPORT = [getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name)]


class View:
    """One way to show it; this one shows nothing."""

    def show(self, done: int, total: int) -> None:
        """Show `done` of `total` bytes."""

    def hide(self) -> None:
        """Somebody else writes where it is shown; it may come back behind that."""

    def close(self, *, finished: bool) -> None:
        """The operation has ended, well or not."""


@contextmanager
def show(arguments: argparse.Namespace, *, result_on_stdout: bool = False) -> Generator[Meter]:
    """What a long operation is to call; what was shown is ended, or wiped, where the operation has.

    Standard output is left alone where the command's JSON goes there, or, by `result_on_stdout`, other data
    that must not be mixed with anything.
    """
    alone = result_on_stdout or getattr(arguments, "output", None) == "json"
    meter = Meter(_view(arguments, sys.stderr if alone else sys.stdout))
    before = {}
    with suppress(ValueError):  # signals are the main thread's
        before = {number: signal.signal(number, meter.ask) for number in REPORT}
    finished = False
    try:
        yield meter
        finished = True
    finally:
        meter.close(finished=finished)
        for number, handler in before.items():
            signal.signal(number, handler)


class Meter:
    """Hands on what the operation tells, and answers SIGUSR1 on standard error as qemu-img does."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._done = self._total = 0
        self._asked = False
        self._told = False

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        self._done, self._total = done, total
        self._answer()
        self._view.show(done, total)

    def hide(self) -> None:
        """A part of the result is written to standard output."""
        self._view.hide()

    def conclude(self, lines: Iterable[str]) -> None:
        """The operation has ended: print its result.

        qemu-img ends its line of progress behind that; others are ended before.
        """
        self._told = isinstance(self._view, Line)
        if not self._told:
            self.close(finished=True)
            self._view = View()
        for line in lines:
            print(line)

    def ask(self, *_: object) -> None:
        """A signal handler. The answer waits for the next call: a handler may run in the middle of a line."""
        self._asked = True

    def close(self, *, finished: bool) -> None:
        """The operation has ended; where it needed no work, or found its answer early, it is done, too."""
        if finished and not self._told and (self._done != self._total or not self._total):
            self._view.show(self._total, self._total)
        self._view.close(finished=finished)
        self._answer()

    def _answer(self) -> None:
        if self._asked:
            self._asked = False
            print(f"{fresh_line()}{_percent(self._done, self._total)}", file=sys.stderr, flush=True)


def along(extents: Iterable[Extent], progress: Progress, start: int, length: int) -> Iterator[Extent]:
    """The extents of `length` bytes from `start` on; `progress` is told how far who takes them is."""
    progress(0, length)
    due = 0.0
    for extent in extents:
        yield extent
        if time.monotonic() >= due:
            progress(extent.offset + extent.length - start, length)
            due = time.monotonic() + EXTENTS_INTERVAL


class Line(View):
    """qemu-img's: rewritten at each percent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = -1.0

    def show(self, done: int, total: int) -> None:
        """Rewrite the line if it would say something else."""
        percent = 100 * done / total if total else 100
        if percent >= self._shown + 1 or (percent == 100 and self._shown != 100):
            self._shown = percent
            print(_percent(done, total), end="\r", file=self._stream, flush=True)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        """End the line."""
        print(file=self._stream, flush=True)


class Lines(View):
    """A JSON object a line; the last one has `done` equal to `total` if all went well."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._start = time.monotonic()
        self._next = 0.0

    def show(self, done: int, total: int) -> None:
        """Write a line, not too often."""
        import json

        seconds = time.monotonic() - self._start
        if done != total and seconds < self._next:
            return
        self._next = seconds + JSON_INTERVAL
        rate = done / seconds if done and seconds else None
        document = {
            "command": self._command,
            "done": done,
            "total": total,
            "seconds": round(seconds, 3),
            "rate": rate and round(rate),
            "left": rate and round((total - done) / rate, 3),
        }
        print(json.dumps(document), file=sys.stderr, flush=True)


class Bar(View):
    """tqdm's bar; one that nobody asked for comes late and leaves nothing behind."""

    def __init__(self, command: str, stream: TextIO, *, asked_for: bool) -> None:
        self._command = command
        self._stream = stream
        self._asked_for = asked_for
        self._start = time.monotonic()
        self._bar: tqdm[NoReturn] | None = None

    def show(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._bar is None:
            if not self._asked_for and time.monotonic() < self._start + UNASKED_AFTER:
                return
            self._bar = _tqdm()(
                desc=self._command,
                total=total,
                initial=done,
                file=self._stream,
                dynamic_ncols=True,
                colour=None if os.environ.get("NO_COLOR") else "green",
                bar_format="{desc} {percentage:3.0f}% |{bar}| {gone} of {all}  {speed}  {when}",
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.refresh()

    def hide(self) -> None:
        """Wipe the bar, which the next `show` draws again."""
        if self._bar is not None:
            self._bar.clear()

    def close(self, *, finished: bool) -> None:
        """Leave the bar where it was asked for, or wipe it."""
        if self._bar is not None:
            self._bar.leave = self._asked_for and finished
            self._bar.close()


def fresh_line() -> str:
    """What goes before a line of text on standard error: wipes a bar, or the `^C` that a terminal shows."""
    return "\r\x1b[K" if _terminal(sys.stderr) else ""


def _view(arguments: argparse.Namespace, stream: TextIO) -> View:
    """How this command line wants it shown; `stream` is where lines may go."""
    asked_for = bool(arguments.progress)
    if arguments.quiet:
        return View()
    if arguments.progress == "json":
        return Lines(arguments.command)
    if asked_for and not _terminal(stream):
        return Line(stream)
    screen = next((stream for stream in (sys.stderr, stream) if _terminal(stream)), None)
    if screen is None or not (asked_for or screen is sys.stderr):
        return View()
    if not _have_tqdm():
        return Line(screen) if asked_for else View()
    return Bar(arguments.command, screen, asked_for=asked_for)


def _tqdm() -> type[tqdm[NoReturn]]:
    """The class of bars, with sizes in this command's words."""
    from tqdm.std import tqdm

    from pyimago.cli._text import size

    class Sizes(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread of its own

        @property
        def format_dict(self) -> MutableMapping[str, Any]:
            facts = super().format_dict
            done, total, elapsed = facts["n"], facts["total"], facts["elapsed"]
            rate = facts["rate"] or (elapsed and (done - facts["initial"]) / elapsed)
            left = f"{self.format_interval((total - done) / rate) if rate else '?'} left"
            return {
                **facts,
                "gone": size(done),
                "all": size(total),
                "speed": f"{size(int(rate)) if rate else '?'}/s",
                "when": left if done < total else f"in {self.format_interval(elapsed)}",
            }

    return Sizes


def _have_tqdm() -> bool:
    """Not where pyimago was installed without what it depends on."""
    from importlib.util import find_spec

    return find_spec("tqdm") is not None


def _terminal(stream: TextIO | None) -> bool:
    """Whether it is one that a bar can be drawn on. There is no stream at all where it was closed (`>&-`)."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _percent(done: int, total: int) -> str:
    return f"    ({100 * done / total if total else 100:.2f}/100%)"
