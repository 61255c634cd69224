"""What `--help` of each subcommand ends with. The tests run every line that does not begin with a blank."""

from __future__ import annotations

EXAMPLES = {
    "amend": """\
pyimago amend -o compat=1.1 disk.qcow2
    the version that all of qcow2's features need
pyimago amend -o backing_file=base.qcow2,backing_fmt=qcow2 disk.qcow2
    name it, look at nothing
""",
    "bench": """\
pyimago bench -c 10000 -d 16 disk.qcow2
    10,000 reads, 16 at a time
pyimago bench -t none -s 64k disk.qcow2
    of 64 KiB, past the page cache
""",
    "bitmap": """\
pyimago bitmap --add disk.qcow2 daily
    records every write from now on
pyimago bitmap --add -g 1M --disable disk.qcow2 later
    coarser, and not yet
""",
    "check": """\
pyimago check disk.qcow2
    is its metadata right?
pyimago check -r leaks disk.qcow2
    give back space that nothing uses
pyimago check --deep --output=json disk.qcow2
    unpack every compressed cluster, too
""",
    "commit": """\
pyimago commit disk.qcow2
    its backing file has it all then, and it is empty
pyimago commit -p -b base.qcow2 disk.qcow2
    into a certain one; disk.qcow2 stays as it is
""",
    "compare": """\
pyimago compare -f raw -F qcow2 disk.raw disk.qcow2
    the same content?
pyimago compare -s -p disk.qcow2 copy.qcow2
    the same size and allocation, too
""",
    "completion": """\
eval "$(pyimago completion bash)"
    in ~/.bashrc; zsh: the same in ~/.zshrc, behind compinit
pyimago completion fish > ~/.config/fish/completions/pyimago.fish
    once
""",
    "convert": """\
pyimago convert -p disk.qcow2 flat.raw
    flat, with its backing files' content
pyimago convert -f raw -O qcow2 disk.raw new.qcow2
    -f: never guess what a guest could write to
pyimago convert -O qcow2 -c -o compression_type=zstd disk.qcow2 small.qcow2
    packed, on all cores
pyimago convert -O qcow2 -B base.qcow2 -F qcow2 disk.qcow2 thin.qcow2
    only what disk.qcow2 itself holds
pyimago convert -O qcow2 disk.qcow2 - > streamed.qcow2
    in one pass, for a pipe
""",
    "create": """\
pyimago create -f qcow2 new.qcow2 20G
    an empty disk of 20 GiB
pyimago create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
    over another, which stays as it is
pyimago create -f qcow2 -o cluster_size=2M,preallocation=metadata new.qcow2 1G
    `-o help` lists more
""",
    "dd": """\
pyimago dd if=disk.qcow2 of=start.raw bs=1M count=4
    its first 4 MiB
pyimago dd -O qcow2 if=disk.qcow2 of=rest.qcow2 bs=64k skip=4
    all but its first 256 KiB
""",
    "hash": """\
pyimago hash disk.qcow2
    equal for every image with this content
pyimago hash -p *.qcow2 > hashes
    of several, with the progress on stderr
""",
    "info": """\
pyimago info disk.qcow2
    what it is; no other file is opened
pyimago info --backing-chain --output=json disk.qcow2
    with its backing files, for programs
""",
    "map": """\
pyimago map disk.qcow2
    where in which file the data is
pyimago map --output=json disk.qcow2
    all ranges, zeroes and holes too
pyimago map --picture disk.qcow2
    drawn here, image by image of the chain
pyimago map --picture disk.png disk.qcow2
    and as a file
""",
    "measure": """\
pyimago measure -O qcow2 disk.raw
    how large would it be as a qcow2?
pyimago measure -O qcow2 --size 100G
    and a new one of 100 GiB?
""",
    "rebase": """\
pyimago rebase -b newbase.qcow2 -F qcow2 disk.qcow2
    what differs is copied into disk.qcow2
pyimago rebase -b '' disk.qcow2
    needs no backing file any more
""",
    "resize": """\
pyimago resize disk.qcow2 +10G
    10 GiB more
pyimago resize -f raw --shrink disk.raw 256k
    what is behind it is lost
""",
    "snapshot": """\
pyimago snapshot -c clean disk.qcow2
    keep the disk as it is now
pyimago snapshot -l disk.qcow2
    list them
pyimago snapshot -c clean disk.qcow2 && pyimago snapshot -a clean disk.qcow2
    and go back to it
""",
}


def epilog(command: str, name: str) -> str:
    """The end of the help of `command` of the program `name`."""
    from textwrap import indent

    return "examples:\n" + indent(EXAMPLES[command].replace("pyimago", name).rstrip(), "  ")
