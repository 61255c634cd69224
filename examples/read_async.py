"""The same awaited, with our own choice of storage and of backing image."""

import asyncio

from pyimago import File, FormatAccess, Null, Qcow2, Raw, StorageOpenOptions


async def main() -> None:
    """Read the first sector of image.qcow2 over a backing image of no bytes."""
    file = await File.open(StorageOpenOptions(filename="image.qcow2", write=True))
    qcow2 = await Qcow2.open_image(file, write=True)
    qcow2.set_backing(FormatAccess(await Raw.open_image(Null(0), write=False)))
    await qcow2.open_implicit_dependencies()  # whatever remains, such as a data file
    image = FormatAccess(qcow2)
    buf = bytearray(512)
    await image.read(buf, 0)
    await image.flush()
    await image.close()
    print(buf[:16].hex(" "))


asyncio.run(main())
