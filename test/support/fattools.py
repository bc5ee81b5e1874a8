"""Makes, writes and reads VHDs with FATtools, as the steps on standard input say; see fattools.ts."""

import contextlib
import json
import sys

from FATtools import vhdutils


def create(path, size, blockSize):
    vhdutils.mk_dynamic(path, size, block=blockSize)


def child(path, parent):
    vhdutils.mk_diff(path, parent)


def write(path, offset, source):
    image = vhdutils.Image(path, "r+b")
    image.seek(offset)
    with open(source, "rb") as file:
        image.write(file.read())
    image.close()


def read(path, target):
    image = vhdutils.Image(path)
    with open(target, "wb") as file:
        file.write(image.read())
    image.close()


# It prints what it finds unusual, like the alignment of blocks.
with contextlib.redirect_stdout(sys.stderr):
    for step in json.load(sys.stdin):
        {"create": create, "child": child, "write": write, "read": read}[step.pop("do")](**step)
