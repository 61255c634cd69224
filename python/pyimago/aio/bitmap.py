"""Persistent dirty bitmaps of an image in a file, awaited: `pyimago.aio.bitmap`."""

from pyimago import bitmap
from pyimago._faces import awaited

__all__ = ["list", "add", "remove", "clear", "enable", "disable", "merge"]

list = awaited(bitmap.list)
add = awaited(bitmap.add)
remove = awaited(bitmap.remove)
clear = awaited(bitmap.clear)
enable = awaited(bitmap.enable)
disable = awaited(bitmap.disable)
merge = awaited(bitmap.merge)
