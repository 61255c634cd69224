#!/usr/bin/env bash
# Makes the demo image anew: guest.qcow2 over base.qcow2, a 512 KiB ext4 file system.
#
#   base.qcow2    the file system with two files, all clusters zlib-compressed
#   guest.qcow2   only the clusters that changed when two more files came: compressed, but for
#                 cluster 0, which is plain, as after a guest's own write
#
# Needs mkfs.ext4 and debugfs (e2fsprogs), qemu-img and qemu-io (qemu-utils).
# UUID, hash seed and times are fixed: the same e2fsprogs makes the same guest bytes on every
# run. Their sum is kept in SHA256SUMS.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C TZ=UTC E2FSPROGS_FAKE_TIME=1704067200 # 2024-01-01 00:00 UTC
cluster=4096

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

add_files() { # IMAGE COMMAND...: debugfs exits 0 whatever happened, so silence is the proof
    local image=$1 errors
    shift
    printf '%s\n' "$@" > commands
    errors=$(debugfs -w -f commands "$image" 2>&1 > /dev/null | grep -v '^debugfs 1\.' || true)
    [ -z "$errors" ] || { echo "$errors" >&2; exit 1; }
}

echo imago-demo > hostname
seq -f 'line %04g, which stays in the base image' 1 2000 > lines.txt
seq -f 'line %04g, which only the overlay has' 1 1000 > more.txt
cat > hello.txt << 'EOF'
Hello from a file of an ext4 file system,
in a compressed cluster of a qcow2 overlay.
EOF

mkfs.ext4 -q -b 1024 -N 32 -m 0 -L pyimago-demo -O '^has_journal,^resize_inode' \
    -U 6e1a9f3c-5a0b-4c57-9d5e-0f2b7c1d8e42 -E hash_seed=0b8d7f52-3e64-4c1f-8a2b-91d5c6e7f304,lazy_itable_init=0 \
    base.raw 512k > /dev/null
add_files base.raw 'mkdir etc' 'write hostname etc/hostname' 'write lines.txt lines.txt'
cp base.raw guest.raw
add_files guest.raw 'write hello.txt hello.txt' 'write more.txt more.txt'

qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=$cluster base.raw base.qcow2
qemu-img create -q -f qcow2 -o cluster_size=$cluster -b base.qcow2 -F qcow2 guest.qcow2
for ((offset = 0; offset < $(stat -c %s guest.raw); offset += cluster)); do
    ! cmp -s -n $cluster -i $offset base.raw guest.raw || continue
    tail -c +$((offset + 1)) guest.raw | head -c $cluster > changed || [ $? = 141 ]
    [ $offset = 0 ] && plain= || plain=-c
    qemu-io -f qcow2 -c "write -q $plain -s changed $offset $cluster" guest.qcow2
done
qemu-img compare -q -f qcow2 -F raw guest.qcow2 guest.raw
qemu-img check -q guest.qcow2

cd - > /dev/null
cp "$work"/{base,guest}.qcow2 .
echo "$(sha256sum < "$work/guest.raw" | cut -d ' ' -f 1)  guest.raw" > SHA256SUMS
ls -l ./*.qcow2
