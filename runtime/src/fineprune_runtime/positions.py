"""Pack the positions of stored elements: not at all, as a bitmask, or as Rice-coded gaps."""

import math

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

DENSE, BITMASK, GAPS = range(3)
"""The forms: every element is stored, a bit an element, the gaps between stored ones."""


class CodecError(ValueError):
    """The bytes are not a complete, valid blob, or the requested type cannot hold the array."""


def encode_positions(nonzero: NDArray[np.bool_], where: NDArray[np.int64]) -> tuple[int, int, Bytes]:
    """Return the smallest form of the positions, its Rice parameter and its bytes.

    Args:
        nonzero: a flag for each element.
        where: the positions of the set flags, ascending.
    """
    empty = np.empty(0, np.uint8)
    kept, count = len(where), len(nonzero)
    if kept == count:
        return DENSE, 0, empty
    if kept == 0:
        return GAPS, 0, empty
    gaps = np.diff(where, prepend=-1) - 1
    rice, size = _best_rice(gaps)
    if size >= -(-count // 8):
        return BITMASK, 0, np.packbits(nonzero, bitorder="little")
    planes = [np.packbits((gaps >> bit) & 1 == 1, bitorder="little") for bit in range(rice)]
    ends = np.cumsum((gaps >> rice) + 1) - 1
    unary = np.zeros(ends[-1] + 1, np.bool_)
    unary[ends] = True
    return GAPS, rice, np.concatenate([*planes, np.packbits(unary, bitorder="little")])


def _best_rice(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of remainder bits that takes the fewest bytes, and that number of bytes.

    Geometric gaps of mean g are coded best with about log2(g ln 2) bits (Rice 1979, Golomb 1966);
    clustered gaps need fewer bits, so neighboring numbers are tried.
    """
    guess = round(math.log2(max(1.0, (float(gaps.mean()) + 1) * math.log(2))))
    sizes = {}
    for rice in range(max(0, guess - 2), min(31, guess + 1) + 1):
        unary = int((gaps >> rice).sum()) + len(gaps)
        sizes[rice] = rice * -(-len(gaps) // 8) + -(-unary // 8)
    best = min(sizes, key=sizes.__getitem__)
    return best, sizes[best]


def decode_positions(stream: Bytes, form: int, rice: int, kept: int, count: int) -> NDArray[np.int64]:
    """Return the positions of stored elements, ascending; none where all are stored.

    Args:
        stream: the bytes of the positions.
        form: `DENSE`, `BITMASK` or `GAPS`.
        rice: the Rice parameter of gaps.
        kept: the number of stored elements.
        count: the number of all elements.

    Raises:
        CodecError: the bytes are not those of `kept` positions below `count`.
    """
    if form == DENSE or kept == 0:
        if len(stream):
            raise CodecError(f"{len(stream)} bytes too many")
        return np.empty(0, np.int64)
    if form == BITMASK:
        if len(stream) != -(-count // 8):
            raise CodecError(f"its bitmask has {len(stream)} bytes for {count} elements")
        where = np.flatnonzero(_bits(stream))
    else:
        where = _decode_gaps(stream, rice, kept, count)
    if len(where) != kept:
        raise CodecError(f"says that {kept} elements are stored, and gives {len(where)} positions")
    if where[-1] >= count:
        raise CodecError(f"a position is {where[-1]}, and there are {count} elements")
    return where


def _decode_gaps(stream: Bytes, rice: int, kept: int, count: int) -> NDArray[np.int64]:
    plane = -(-kept // 8)
    if len(stream) < rice * plane:
        raise CodecError("its gaps are cut off")
    ends = np.flatnonzero(_bits(stream[rice * plane :]))
    if len(ends) != kept:
        raise CodecError(f"says that {kept} elements are stored, and gives {len(ends)} gaps")
    if ends[-1] // 8 != len(stream) - rice * plane - 1:
        raise CodecError("bytes follow its last gap")
    # Checked before the shift, which could overflow. Remainders cannot: that takes 2^32 of them, gigabytes.
    if (int(ends[-1]) + 1 - kept) << rice > count - kept:
        raise CodecError(f"its gaps lead past the last of {count} elements")
    gaps = (np.diff(ends, prepend=-1) - 1) << rice
    for bit in range(rice):
        gaps |= _bits(stream[bit * plane : (bit + 1) * plane])[:kept].astype(np.int64) << bit
    return np.cumsum(gaps + 1) - 1


def _bits(stream: Bytes) -> NDArray[np.bool_]:
    return np.unpackbits(stream, bitorder="little").view(np.bool_)  # flatnonzero is fastest on bool
