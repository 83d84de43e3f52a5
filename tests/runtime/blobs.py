"""Blobs by hand, and forged ones."""

import math
import struct
import zlib

import numpy as np

MASK, FLOAT32, FLOAT16, BFLOAT16, INT8, INT4 = range(6)


DENSE, BITMASK, GAPS = range(3)


def sealed(blob):
    """`blob` with the checksum that belongs to it: what a forger would write."""
    blob = bytes(blob)
    return blob[:8] + struct.pack("<I", zlib.crc32(blob[:8] + blob[12:])) + blob[12:]


def header(form, values, kept, shape, rice=0, magic=b"\x93FPK", version=1, zeros=(0, 0)):
    """A header as docs/format.md has it, with no checksum yet."""
    fields = bytes([version, form, values, len(shape)]) + b"????" + bytes([rice, zeros[0]])
    numbers = struct.pack(f"<HQ{len(shape)}Q", zeros[1], kept, *shape)
    return magic + fields + numbers


def blob_of(*parts):
    return np.frombuffer(sealed(b"".join(parts)), np.uint8)


def at(shape, values):
    """Zeros with `values` at flat positions."""
    array = np.zeros(math.prod(shape), np.float32)
    array[list(values)] = list(values.values())
    return array.reshape(shape)
