#!/bin/bash
# What the guest does once it has this machine's files: see run.py. Its own files are in memory and on its disks.
echo "guest: started"
cd "$(dirname "$0")/../.."
export PATH=$PWD/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYIMAGO_GUEST=1
for folder in /tmp /run /mnt; do mount -t tmpfs tmpfs $folder; done

unpacked() {
    local root=$PWD/target/vm/root
    LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu PATH=$root/sbin:$PATH "$@"
}

# /run/disks/NAME is the disk of that name.
mkdir -p /run/disks
for disk in /sys/block/vd*; do ln -s "/dev/${disk##*/}" "/run/disks/$(cat "$disk/serial")"; done
ln -s /dev/sda /run/disks/faulty
for name in btrfs xfs ext4; do
    unpacked mkfs.$name -q /run/disks/$name > /dev/null
    mkdir /mnt/$name && mount -t $name /run/disks/$name /mnt/$name
done

python -m pytest -p no:cacheprovider --color=no -o testpaths=tests/vm/guest "$@"
echo "guest: pytest ended with $?"
sync
echo o > /proc/sysrq-trigger
while :; do :; done
