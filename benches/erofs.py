#!/usr/bin/env python3
"""An alternative to hard links, measured and not shipped: an erofs image with nothing but names and metadata,
to be mounted under an overlay whose data come from the repository's objects (what composefs does).

erofs.py ROOTFS OBJECTS IMAGE    make the image of a deployment that consists of hard links
"""
import os
import shutil
import stat
import subprocess
import sys
import tempfile


def names_of_objects(objects):
    found = {}
    for part in os.scandir(objects):
        for entry in os.scandir(part.path):
            if entry.name.endswith(".file"):
                found[entry.inode()] = f"/{part.name}/{entry.name}"
    return found


def copy_metadata(source, target, objects):
    for entry in os.scandir(source):
        at, meta = os.path.join(target, entry.name), entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(meta.st_mode):
            os.symlink(os.readlink(entry.path), at)
        elif stat.S_ISDIR(meta.st_mode):
            os.mkdir(at)
            copy_metadata(entry.path, at, objects)
        else:
            with open(at, "wb") as file:
                file.truncate(meta.st_size)
            # Source: overlayfs.rst of the kernel's documentation, data-only lower layers.
            os.setxattr(at, "trusted.overlay.metacopy", b"")
            os.setxattr(at, "trusted.overlay.redirect", objects[meta.st_ino].encode())
        os.chown(at, meta.st_uid, meta.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(meta.st_mode):
            os.chmod(at, stat.S_IMODE(meta.st_mode))


def main():
    rootfs, objects, image = sys.argv[1:]
    scratch = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(image)))
    try:
        os.chmod(scratch, 0o755)
        copy_metadata(rootfs, scratch, names_of_objects(objects))
        # Nobody reads the zeros; compressed, they are small. What composefs makes is a tenth of that.
        subprocess.run(["mkfs.erofs", "--quiet", "-zlz4", image, scratch], check=True)
    finally:
        shutil.rmtree(scratch)


main()
