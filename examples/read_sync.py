"""Read the first sector of image.qcow2, step by step: open, open what it names, access."""

from pyimago import Qcow2, SyncFormatAccess

qcow2 = Qcow2.open_path_sync("image.qcow2", write=False)
qcow2.open_implicit_dependencies_sync()
with SyncFormatAccess(qcow2) as image:
    buf = bytearray(512)
    image.read(buf, 0)

print(buf[:16].hex(" "))
