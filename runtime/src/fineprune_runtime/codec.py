"""Pack dense arrays into values and positions, and unpack them; docs/format.md describes the bytes.

A blob is one array packed into bytes: a header, then scales, values and positions. It carries its own
checksum, and every field is validated before it is used: the caller gives the shape, so an untrusted blob
cannot make us allocate memory for a size of its choice.

Needs only numpy.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.positions import DENSE, GAPS, decode_positions, encode_positions
from fineprune_runtime.positions import Bytes as Bytes
from fineprune_runtime.positions import CodecError as CodecError

Values = Literal["mask", "float32", "float16", "bfloat16", "int8", "int4"]

VERSION = 1
MAGIC = b"\x93FPK"
_FIXED = struct.Struct("<4sBBBBIBBHQ")  # then one uint64 for each dimension
_MAX_DIMENSIONS = 8
_VALUES: tuple[Values, ...] = get_args(Values)  # the code of a type is its index here
_ITEM_BITS = {"mask": 0, "float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}
_LEVELS = {"int8": 127, "int4": 7}
DENSE_FROM = 0.94
"""A matrix of this density or more counts as dense: leaving out its zeros saves no space."""

# With its zeros filled in, an array may take SMALL bytes or MOST_GROWTH times those of its blob, whichever is
# more. Where few elements are stored, each takes 1.25 bytes or more, so only large arrays that keep less than
# 0.3 % are refused. SMALL holds any matrix of the largest encoders, even if it was pruned to nothing.
MOST_GROWTH = 1024
SMALL = 256 * 2**20


class Header(NamedTuple):
    """The header of a blob."""

    values: Values
    shape: tuple[int, ...]
    kept: int
    """Stored elements; the others are zero."""
    positions: int
    """0: every element is stored; 1: one bit per element; 2: Rice-coded gaps."""
    rice: int
    """Bits of the remainder of a gap."""
    checksum: int
    size: int
    """Bytes before the scales."""


class Packed(NamedTuple):
    """An unpacked blob, still sparse."""

    header: Header
    positions: NDArray[np.int64]
    """(kept,), flat indices in ascending order."""
    values: NDArray[Any]
    """(kept,): float32, or int8 for int8 and int4; empty for a mask."""
    scales: NDArray[np.float32]
    """(rows,) for int8 and int4, else empty."""
    nbytes: int
    """Of the whole blob."""


def encode(array: NDArray[np.float32], values: Values = "float32") -> Bytes:
    """Pack a float32 array of any shape into bytes, 1-d uint8.

    Elements whose bits are all zero are omitted, unless they are so few that storing them takes less space
    than positions; -0.0 is stored. "float32" is exact, and so are "float16" and "bfloat16" for values that
    were of that type; other values round to nearest. "int8" and "int4" are symmetric with a scale for each
    row (first dimension). "mask" stores only positions. Positions take whichever form is smallest. Raises
    `CodecError` for values that the type cannot hold: float16 beyond 65,504, bfloat16 beyond 3.39e38, int8
    and int4 beyond 2^127 or not finite.
    """
    array = np.asarray(array, dtype=np.float32, order="C")  # ascontiguousarray makes a scalar 1-d
    if array.ndim > _MAX_DIMENSIONS:
        raise CodecError(f"an array of {array.ndim} dimensions; {_MAX_DIMENSIONS} are the most")
    flat = array.reshape(-1)
    nonzero = flat.view(np.uint32) != 0
    kept = int(np.count_nonzero(nonzero))
    few = DENSE_FROM * flat.size <= kept < flat.size and values != "mask"
    if few and (flat.size - kept) * _ITEM_BITS[values] <= flat.size:  # less than a bitmask takes
        nonzero[:] = True
        kept = flat.size
    where = np.flatnonzero(nonzero)
    form, rice, positions = encode_positions(nonzero, where)
    stored, scales = _encode_values(flat[where], where, array.shape, values)
    header = _FIXED.pack(
        MAGIC, VERSION, form, _VALUES.index(values), array.ndim, 0, rice, 0, 0, kept
    ) + struct.pack(f"<{array.ndim}Q", *array.shape)
    blob = np.concatenate(
        [np.frombuffer(header, np.uint8), scales.view(np.uint8), stored.view(np.uint8), positions]
    )
    blob[8:12] = np.frombuffer(struct.pack("<I", _checksum(blob)), np.uint8)
    return blob


def decode(blob: Bytes, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the array that `encode` packed; of a mask, ones at the stored positions.

    Raises `CodecError`, before it allocates memory, unless `blob` is complete and has exactly `shape`, and
    if the array is out of all proportion to the blob (`MOST_GROWTH`).
    """
    packed = take_apart(blob, shape)
    if packed.header.values == "mask":
        return fill(packed, np.ones(1, np.float32))
    return fill(packed, dequantized(packed))


def fill(packed: Packed, values: NDArray[Any]) -> NDArray[Any]:
    """Return the array of a blob with zeros filled in, of the type of `values`, which are its stored ones.

    Args:
        packed: from `take_apart`.
        values: (kept,), or a single value for all.

    Raises:
        CodecError: the array is out of all proportion to the blob (`MOST_GROWTH`), or the memory is full.
    """
    header = packed.header
    count = math.prod(header.shape)
    is_full = header.positions == DENSE
    if is_full and len(values) == count:
        return values.reshape(header.shape)
    _check_growth(packed, values.itemsize)
    try:
        dense = np.zeros(count, values.dtype)
    except MemoryError as error:
        raise CodecError(f"{count * values.itemsize:,} bytes of memory are not available") from error
    dense[slice(None) if is_full else packed.positions] = values
    return dense.reshape(header.shape)


def _check_growth(packed: Packed, itemsize: int) -> None:
    """Raise `CodecError` if a few bytes ask for very much memory."""
    size = math.prod(packed.header.shape) * itemsize
    if size > max(SMALL, MOST_GROWTH * packed.nbytes):
        raise CodecError(
            f"{packed.nbytes:,} bytes say that they hold an array of {size:,} bytes; the file is damaged, or "
            f"made to fill the memory (allowed are {MOST_GROWTH} times the bytes, or {SMALL:,})"
        )


def unpack(blob: Bytes, shape: Sequence[int]) -> Packed:
    """Check and unpack a blob without filling in the zeros. Raises as `decode`."""
    packed = take_apart(blob, shape)
    if packed.header.positions != DENSE:
        return packed
    _check_growth(packed, 8)  # a mask stores nothing else
    return packed._replace(positions=np.arange(packed.header.kept))


def take_apart(blob: Bytes, shape: Sequence[int]) -> Packed:
    """Unpack a blob without positions if every element is stored: they would be larger than the values."""
    header = read_header(blob)
    if header.shape != tuple(shape):
        raise CodecError(f"holds an array of shape {header.shape}, expected {tuple(shape)}")
    count, kept = math.prod(header.shape), header.kept
    if kept > count or (header.positions == DENSE and kept != count):
        raise CodecError(f"says that {kept} of {count} elements are stored")
    rows = _rows(header.shape) if header.values in _LEVELS else 0
    begin = header.size
    middle = begin + 4 * rows
    end = middle + -(-kept * _ITEM_BITS[header.values] // 8)
    if end > len(blob):
        raise CodecError(f"cut off: {len(blob)} bytes, but its values end at {end}")
    if _checksum(blob) != header.checksum:
        raise CodecError("checksum does not match: the bytes were changed")
    scales = np.frombuffer(blob[begin:middle].tobytes(), np.float32)
    # A NaN fails both comparisons; up to the limit even the lowest level times the scale is finite.
    if rows and not ((scales >= 0) & (scales < _scale_limit(header.values))).all():
        raise CodecError("a scale is negative, too large or not finite")
    positions = decode_positions(blob[end:], header.positions, header.rice, header.kept, count)
    return Packed(header, positions, _decode_values(blob[middle:end], header), scales, len(blob))


def dequantized(packed: Packed) -> NDArray[np.float32]:
    """Return the stored values as float32, (kept,)."""
    if packed.header.values not in _LEVELS:
        return packed.values
    if packed.header.positions == DENSE and packed.header.kept:
        rows: NDArray[np.float32] = packed.values.reshape(len(packed.scales), -1) * packed.scales[:, None]
        return rows.reshape(-1)
    counts = _row_counts(packed.positions, packed.header.shape)
    scaled: NDArray[np.float32] = packed.values * np.repeat(packed.scales, counts)
    return scaled


def read_header(blob: Bytes) -> Header:
    """Return the header of a blob, which may end after it; only the structure of the header is checked."""
    if len(blob) < _FIXED.size:
        raise CodecError(f"cut off: {len(blob)} bytes, but a header takes {_FIXED.size}")
    fixed = _FIXED.unpack(blob[: _FIXED.size].tobytes())
    magic, version, form, values, dimensions, checksum, rice, pad, pad2, kept = fixed
    if magic != MAGIC:
        raise CodecError("not packed by fineprune: the first bytes are others")
    if version != VERSION:
        raise CodecError(f"format version {version}; this fineprune reads version {VERSION}: upgrade it")
    size = _FIXED.size + 8 * dimensions
    if (
        form > GAPS
        or values >= len(_VALUES)
        or dimensions > _MAX_DIMENSIONS
        or rice > (31 if form == GAPS else 0)
        or pad
        or pad2
        or len(blob) < size
    ):
        raise CodecError("invalid header")
    shape = struct.unpack(f"<{dimensions}Q", blob[_FIXED.size : size].tobytes())
    return Header(_VALUES[values], shape, kept, form, rice, checksum, size)


def is_blob(array: NDArray[Any]) -> bool:
    """Return whether an array looks like a blob: 1-d bytes that begin with `MAGIC`."""
    return array.dtype == np.uint8 and array.ndim == 1 and array[:4].tobytes() == MAGIC


def _checksum(blob: Bytes) -> int:
    return zlib.crc32(blob[12:].data, zlib.crc32(blob[:8].data))


def _scale_limit(values: Values) -> np.float32:
    return np.float32(2.0**128 / (_LEVELS[values] + 1))


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1


def _row_counts(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the stored elements of each row; a search per row is cheaper than a division per element."""
    rows = _rows(shape)
    width = math.prod(shape) // max(1, rows)
    return np.diff(np.searchsorted(positions, np.arange(rows + 1) * width))


# -- values ------------------------------------------------------------------------------------


def _encode_values(
    stored: NDArray[np.float32], where: NDArray[np.int64], shape: tuple[int, ...], values: Values
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the values in their type, and the scales of the rows."""
    none = np.empty(0, np.float32)
    if values == "mask":
        return none, none
    if values == "float32":
        return stored, none
    if values == "float16":
        with np.errstate(over="ignore"):
            half = stored.astype(np.float16)
        _check_fits(stored, np.isinf(half), "float16; use bfloat16 or float32")
        return half, none
    if values == "bfloat16":
        upper = _to_bfloat16(stored)
        _check_fits(stored, upper & 0x7FFF == 0x7F80, "bfloat16; use float32")
        return upper, none
    if values not in _LEVELS:
        raise CodecError(f"values={values!r}: allowed are {', '.join(_VALUES)}")
    if not (np.abs(stored) <= np.float32(2.0**127)).all():  # beyond it a scale may exceed its limit
        raise CodecError(f"a value is not finite or beyond 2^127, and {values} cannot hold it")
    counts = _row_counts(where, shape)
    scales = _row_scales(stored, counts, values)
    quantized = _levels(stored, np.repeat(scales, counts), values).astype(np.int8)
    return (_pack_nibbles(quantized) if values == "int4" else quantized), scales


def _check_fits(stored: NDArray[np.float32], infinite: NDArray[np.bool_], advice: str) -> None:
    """Raise `CodecError` where rounding made a finite value infinite."""
    if infinite.sum() > np.isinf(stored).sum():
        largest = float(np.abs(stored[np.isfinite(stored)]).max())
        raise CodecError(f"a value of {largest:g} does not fit {advice}")


def _decode_values(stream: Bytes, header: Header) -> NDArray[Any]:
    raw = stream.copy()  # aligned (a slice of a blob may not be) and writable
    if header.values == "float16":
        return raw.view(np.float16).astype(np.float32)
    if header.values == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if header.values == "int8":
        return raw.view(np.int8)
    if header.values == "int4":
        return _unpack_nibbles(raw, header.kept)
    return raw.view(np.float32)


def _to_bfloat16(stored: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper half of each float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = stored.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(stored), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _row_scales(
    stored: NDArray[np.float32], counts: NDArray[np.int64], values: Values
) -> NDArray[np.float32]:
    """Return a scale for each row; 0 for a row without values.

    int8: the largest magnitude becomes 127. int4 has so few levels that clipping the largest values can
    reduce the error: each row takes the clipping ratio, out of five, with the least squared error.
    """
    peak = _by_row(np.maximum, np.abs(stored), counts)
    scales = _coarse(peak / np.float32(_LEVELS[values]))
    if values == "int8":
        return scales
    best = np.full(len(counts), np.inf, np.float32)
    for ratio in (1.0, 0.9, 0.8, 0.7, 0.6):
        tried = _coarse(peak / np.float32(_LEVELS[values] / ratio))
        spread = np.repeat(tried, counts)
        error = _levels(stored, spread, values)
        error *= spread
        error -= stored
        with np.errstate(over="ignore"):  # two errors beyond float32 count as equal
            total = _by_row(np.add, np.square(error, out=error), counts)
        better = total < best
        best[better], scales[better] = total[better], tried[better]
    return scales


def _by_row(reduce: np.ufunc, stored: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return `reduce` over the stored values of each row; 0 for a row without any."""
    result = np.zeros(len(counts), np.float32)
    filled = counts > 0  # reduceat would give an empty row the first value of the next row
    if filled.any():
        result[filled] = reduce.reduceat(stored, (np.cumsum(counts) - counts)[filled])
    return result


def _coarse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales rounded up to 16 bits of mantissa: level x scale is then exact in float32.

    So packing unpacked values gives the same values. Subnormal scales have fewer bits, and are raised.
    """
    coarse = ((scales.view(np.uint32) + 0xFF) & 0xFFFFFF00).astype(np.uint32).view(np.float32)
    return np.where(scales > 0, np.maximum(coarse, np.finfo(np.float32).tiny), np.float32(0))


def _levels(stored: NDArray[np.float32], scales: NDArray[np.float32], values: Values) -> NDArray[np.float32]:
    """Return the level of each value, still as float32."""
    level = np.divide(stored, scales, out=np.zeros_like(stored), where=scales > 0)
    np.rint(level, out=level)
    return np.clip(level, -_LEVELS[values], _LEVELS[values], out=level)


def _pack_nibbles(quantized: NDArray[np.int8]) -> Bytes:
    nibbles = np.zeros(-(-len(quantized) // 2) * 2, np.uint8)
    nibbles[: len(quantized)] = quantized.view(np.uint8) & 0x0F
    packed: Bytes = nibbles[::2] | (nibbles[1::2] << np.uint8(4))
    return packed


def _unpack_nibbles(packed: Bytes, count: int) -> NDArray[np.int8]:
    nibbles = np.empty(2 * len(packed), np.uint8)
    nibbles[::2] = packed & 0x0F
    nibbles[1::2] = packed >> 4
    signed: NDArray[np.int8] = ((nibbles ^ 8).view(np.int8) - np.int8(8))[:count]  # sign extension
    return signed
