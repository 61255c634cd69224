"""The key slots of encrypted images, awaited: `pyimago.aio.luks`."""

from pyimago import luks
from pyimago._faces import awaited

__all__ = ["key_slots", "add_key", "change_key", "erase_key"]

key_slots = awaited(luks.key_slots)
add_key = awaited(luks.add_key)
change_key = awaited(luks.change_key)
erase_key = awaited(luks.erase_key)
