"""The exceptions of this package.

Beside them: failures of the operating system are the `OSError` subclass of their `errno`, with the file's
name; wrong arguments are `ValueError` or `TypeError`; writing to what was opened for reading is
`io.UnsupportedOperation`.
"""

from __future__ import annotations


class ImagoError(Exception):
    """An image cannot be used as it was asked for; the base of all that follow.

    Attributes:
        filename: The file it is about, where there is one.
        offset: Where in that file, in bytes, where that is known.
    """

    filename: str | None
    offset: int | None

    def __init__(self, message: str, filename: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.filename = filename
        self.offset = offset


class InvalidImageError(ImagoError):
    """The file is no image of that format, or its header makes no sense."""


class CorruptImageError(ImagoError):
    """The image's metadata contradicts itself."""


class UnsupportedFeatureError(ImagoError):
    """The image needs a feature that is not there; the message names it."""


class ImplicitOpenDeniedError(ImagoError):
    """The image names a file (its backing or data file) that may not be opened for it; see `implicit`."""


class WrongSecretError(ImagoError):
    """The image is encrypted, and the secret is missing or opens none of its key slots."""


class ImageLockedError(ImagoError):
    """Somebody else has the image open in a way that excludes this one."""


class ImageClosedError(ImagoError, ValueError):
    """The image was closed; a `ValueError` too, as with closed files."""


class LatchedError(ImagoError):
    """A write of metadata failed before: nothing more is written to this image. Close it and check it."""


for _error in (ImagoError, *ImagoError.__subclasses__()):
    # Tracebacks call them what a program calls them.
    _error.__module__ = "pyimago"


def shrinks(filename: str | None, now: int, size: int) -> ValueError:
    """What resizing a disk of `now` bytes to fewer raises where nobody allowed it."""
    return ValueError(
        f"{filename or 'the image'}: a disk of {size} bytes would lose what lies behind them, "
        f"as it has {now}: shrink=True allows it"
    )
