"""Runs the tests of tests/vm/guest in a virtual machine: block devices, file systems that share space.

The guest is Debian's kernel over this machine's own files, mounted read-only over 9p: the same Python, the
same .venv, the same qemu-img. Debian's packages are unpacked below target/vm and installed nowhere. Arguments
go to pytest, whose exit status is this one's; where a machine cannot be had it is 0, and why is said.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "vm"
UNPACKED = WORK / "root"
PACKAGES = ["qemu-system-x86", "linux-image-amd64", "busybox-static", "btrfs-progs", "xfsprogs"]
LIBRARIES = ":".join(
    str(UNPACKED / folder) for folder in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
)

# What is built as a module and needed, in this order; what they need themselves comes before them.
MODULES = ["virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "crc32c_generic", "btrfs", "xfs", "ext4", "loop"]
MODULES += ["sd_mod", "scsi_debug"]

# A disk of which ten sectors from 0x1234 on cannot be read. It unmaps, and does not say what is there then.
OPTIONS = {"scsi_debug": "dev_size_mb=8 delay=0 opts=2 lbpu=1 lbprz=0"}

# Name (the disk's serial number), bytes, bytes of its blocks.
DISKS = [("plain", 24 << 20, 512), ("blocks4k", 24 << 20, 4096)]
DISKS += [(name, 2 << 30, 512) for name in ("btrfs", "xfs", "ext4")]

# Seconds until a guest that really runs on /dev/kvm has started; on some machines it opens and then hangs.
STARTS_WITHIN = 30

INIT = """#!/bin/busybox sh
set -e
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
{insert}
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
for each in proc sys dev; do $bb mount --move /$each /host/$each; done
exec $bb switch_root /host /bin/bash {guest} {arguments}
"""


def main(arguments: list[str]) -> int:
    """Runs pytest with these arguments in the guest."""
    if missing := unpack():
        print(f"test-vm: skipped: {missing}")
        return 0
    write_initramfs(WORK / "initramfs", arguments)
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        status = run_machine("kvm", STARTS_WITHIN)
        if status is not None:
            return status
    print("test-vm: no guest runs on /dev/kvm here: all of it is emulated, which takes minutes", flush=True)
    status = run_machine("tcg,thread=multi", 10 * STARTS_WITHIN)
    if status is None:
        print("test-vm: the guest did not start", file=sys.stderr)
    return 1 if status is None else status


def run_machine(accelerator: str, starts_within: int) -> int | None:
    """Runs the guest to its end: pytest's exit status, or None if it did not start."""
    environment = {**os.environ, "LD_LIBRARY_PATH": LIBRARIES}
    status: int | None = None
    # What a /dev/kvm that is of no use makes of it is nobody's concern.
    errors = subprocess.DEVNULL if accelerator == "kvm" else None
    with subprocess.Popen(
        machine(accelerator), stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, env=environment
    ) as guest:
        assert guest.stdout is not None
        watch = threading.Timer(starts_within, guest.kill)
        watch.start()
        for raw in guest.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line.endswith("guest: started"):
                watch.cancel()
                status = 1  # as long as nobody says otherwise
            elif ended := re.fullmatch(r"guest: pytest ended with (\d+)", line):
                status = int(ended[1])
            else:
                print(line, flush=True)
        watch.cancel()
    return status


def unpack() -> str | None:
    """Unpacks Debian's packages; what is missing, if that cannot be done."""
    done = WORK / "unpacked"
    if done.exists() and done.read_text() == " ".join(PACKAGES):
        return None
    archives = WORK / "debs"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    download = ["--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={archives}"]
    try:
        subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
        subprocess.run(
            ["apt-get", "-qq", "-y", *download, "install", *PACKAGES], check=True, capture_output=True
        )
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", archive, UNPACKED], check=True)
    except FileNotFoundError as error:
        return f"{error.filename} is not here, which brings Debian's {', '.join(PACKAGES)}"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        return f"{shlex.join(map(str, error.cmd))} failed: {said}"
    done.write_text(" ".join(PACKAGES))
    return None


def kernel() -> Path:
    """The newest of the unpacked kernels."""
    return max((UNPACKED / "boot").glob("vmlinuz-*"))


def modules() -> list[Path]:
    """The modules to load, each behind those that it needs."""
    folder = UNPACKED / "lib" / "modules" / kernel().name.removeprefix("vmlinuz-")
    by_name = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    found: dict[Path, None] = {}

    def add(name: str) -> None:
        path = by_name[name.replace("-", "_")]
        if depends := re.search(rb"\0depends=([^\0]+)\0", path.read_bytes()):
            for needed in depends[1].decode().split(","):
                add(needed)
        found[path] = None

    for name in MODULES:
        add(name)
    return list(found)


def write_initramfs(path: Path, arguments: list[str]) -> None:
    """Writes what the kernel starts with: busybox, modules, and a script that goes on with its files."""
    inserted = modules()
    insert = [f"$bb insmod /modules/{module.name} {OPTIONS.get(module.stem, '')}" for module in inserted]
    guest = shlex.quote(str(ROOT / "tests/vm/guest.sh"))
    init = INIT.format(insert="\n".join(insert), guest=guest, arguments=shlex.join(arguments))
    files = {"bin/busybox": (UNPACKED / "bin" / "busybox").read_bytes(), "init": init.encode()}
    files |= {f"modules/{module.name}": module.read_bytes() for module in inserted}
    with path.open("wb") as out:
        for name in ("bin", "modules", "proc", "sys", "dev", "host"):
            out.write(cpio_entry(name, stat.S_IFDIR | 0o755, b""))
        for name, content in files.items():
            out.write(cpio_entry(name, stat.S_IFREG | 0o755, content))
        out.write(cpio_entry("TRAILER!!!", 0, b""))


def cpio_entry(name: str, mode: int, content: bytes) -> bytes:
    """A member of a cpio archive ("newc")."""
    raw = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)


def machine(accelerator: str) -> list[str]:
    """The command that runs the guest, with new disks."""
    cpu = "host" if accelerator == "kvm" else "max"
    command = [str(UNPACKED / "usr/bin/qemu-system-x86_64"), "-accel", accelerator, "-cpu", cpu]
    command += ["-smp", "2", "-m", "3G", "-nodefaults", "-no-user-config", "-display", "none"]
    command += [
        "-serial",
        "stdio",
        "-no-reboot",
        "-kernel",
        str(kernel()),
        "-initrd",
        str(WORK / "initramfs"),
    ]
    command += ["-append", "console=ttyS0 loglevel=2 panic=-1"]
    command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    for name, size, block in DISKS:
        disk = WORK / f"{name}.img"
        disk.unlink(missing_ok=True)
        disk.touch()
        os.truncate(disk, size)
        drive = f"if=none,id={name},file={disk},format=raw,discard=unmap,cache=unsafe,aio=threads"
        device = (
            f"virtio-blk-pci,drive={name},serial={name},logical_block_size={block},physical_block_size=4096"
        )
        command += ["-drive", drive, "-device", device]
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
