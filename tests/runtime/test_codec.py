"""The packed format, byte by byte: it cannot change unnoticed, and no bytes can surprise the reader."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from runtime.blobs import (
    BFLOAT16,
    BITMASK,
    DENSE,
    FLOAT16,
    FLOAT32,
    GAPS,
    INT4,
    INT8,
    MASK,
    at,
    blob_of,
    header,
    sealed,
)

from fineprune_runtime import codec
from fineprune_runtime.codec import CodecError, decode, encode, read_header, unpack

TYPES = ("mask", "float32", "float16", "bfloat16", "int8", "int4")
LEVELS = {"int8": 127, "int4": 7}
# 0.0, -0.0, 1.0, NaNs with a payload, quiet and signaling, of either sign, infinities, the smallest and
# the largest subnormal, the smallest normal, the largest float32
ODD_BITS = [0, 1 << 31, 0x3F800000, 0x7FC12345, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000]
ODD_BITS += [1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


def float32(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


@st.composite
def arrays(draw, odd=True, lowest=-60, highest=60):
    """Arrays of every shape and density, some rows empty; `odd` ones hold every kind of float32."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = np.asarray(random.standard_normal(shape) * 2.0 ** draw(st.integers(lowest, highest)), np.float32)
    if odd:
        array = np.where(random.random(shape) < 0.3, float32(random.choice(ODD_BITS, shape)), array)
    dropped = random.random(shape) >= draw(st.sampled_from([0, 0.02, 0.1, 0.3, 0.7, 0.98, 1]))
    if shape:
        dropped[random.random(shape[0]) < draw(st.sampled_from([0, 0.5]))] = True
    return np.where(dropped, np.float32(0), array).astype(np.float32)


def test_dense():
    # 1.0 is 3F800000 and -0.0 is 80000000, which is no zero; all is kept: no positions.
    blob = encode(np.array([1.0, -0.0], np.float32))
    stored = bytes.fromhex("0000803F 00000080")
    assert blob.tobytes() == sealed(header(DENSE, FLOAT32, 2, [2]) + stored)
    # The whole of it once, the checksum too: CRC-32 of the 32 bytes around it
    assert blob.tobytes().hex(" ", 4) == (
        "9346504b 01000101 61ee9ad5 00000000 02000000 00000000 02000000 00000000 0000803f 00000080"
    )


def test_a_scalar():
    blob = encode(np.array(1.0, np.float32))
    assert blob.tobytes() == sealed(header(DENSE, FLOAT32, 1, []) + bytes.fromhex("0000803F"))


def test_bitmask_of_float16():
    # Positions 0, 1, 3 and 8 of 10: bits 0, 1 and 3 of the first byte (1 + 2 + 8), bit 0 of the second.
    # Gaps 0, 0, 1, 4 would take two bytes as well: of equal sizes the bitmask.
    blob = encode(at((2, 5), {0: 1, 1: -2, 3: 0.5, 8: 1.5}), "float16")
    stored = bytes.fromhex("003C 00C0 0038 003E")
    assert blob.tobytes() == sealed(header(BITMASK, FLOAT16, 4, [2, 5]) + stored + bytes([0x0B, 0x01]))


def test_gaps_of_bfloat16():
    # Positions 6, 48, 62: gaps 6, 41, 13 = (1, 10, 3) x 4 + (2, 1, 1). With 2 bits of remainder: two
    # planes of one byte, low bits 0, 1, 1 (= 6) and high bits 1, 0, 0 (= 1); then, in unary, a one after
    # 1, 10 and 3 zeros: bits 1, 12 and 16. With 1, 3 or 4 bits it takes 5 bytes or more.
    blob = encode(at((8, 10), {6: 1, 48: -2, 62: 3}), "bfloat16")
    positions = bytes([0b110, 0b001, 1 << 1, 1 << 4, 1 << 0])
    stored = bytes.fromhex("803F 00C0 4040")
    assert blob.tobytes() == sealed(header(GAPS, BFLOAT16, 3, [8, 10], rice=2) + stored + positions)


def test_a_mask_has_no_values():
    # A gap of 2, and no remainder: two zeros and a one
    blob = encode(at((20,), {2: 9}), "mask")
    assert blob.tobytes() == sealed(header(GAPS, MASK, 1, [20]) + bytes([0b100]))
    assert decode(blob, (20,)).tolist() == at((20,), {2: 1}).tolist()


def test_zeros_take_a_header():
    assert encode(np.zeros((3, 5), np.float32)).tobytes() == sealed(header(GAPS, FLOAT32, 0, [3, 5]))
    assert encode(np.zeros((3, 0), np.float32)).tobytes() == sealed(header(DENSE, FLOAT32, 0, [3, 0]))


def test_int8():
    # 1/127 = 2^-7 x (1 + 1/127) is 3C010204, and 16 bits of mantissa end before the last byte: up to
    # 3C010300 = 0.00787425. 1.0 is 126.997 of it, -0.5 is -63.498: 127 and -63. The second row's is 1.0.
    blob = encode(np.array([[1.0, -0.5], [127.0, 2.6]], np.float32), "int8")
    scales = bytes.fromhex("0003013C 0000803F")
    assert blob.tobytes() == sealed(header(DENSE, INT8, 4, [2, 2]) + scales + bytes([127, 256 - 63, 127, 3]))


def test_int4():
    # Scales 1, 0 (an empty row) and 2; levels 7, -3 (= 13 of 16) and 7, the first in the low half.
    # Positions 0, 2 and 11 of 12: bits 0 and 2, bit 3.
    blob = encode(at((3, 4), {0: 7, 2: -3, 11: 14}), "int4")
    rest = bytes.fromhex("0000803F 00000000 00000040") + bytes([0xD7, 0x07]) + bytes([0b101, 0b1000])
    assert blob.tobytes() == sealed(header(BITMASK, INT4, 3, [3, 4]) + rest)


@pytest.mark.parametrize(
    ("zeros", "values", "form"),
    [
        (2, "int8", DENSE),
        (13, "int8", BITMASK),
        (3, "float32", DENSE),
        (4, "float32", BITMASK),
        (1, "mask", BITMASK),
    ],
)
def test_few_zeros_are_stored_where_that_is_smaller(zeros, values, form):
    # A bitmask takes a bit for each of 100 elements, in which 3 float32 or 12 int8 zeros fit; 6 % at most.
    array = np.full(100, 127, np.float32)  # a scale of 1
    array[:zeros] = 0
    head = read_header(encode(array, values))
    assert (head.positions, head.kept) == (form, 100 if form == DENSE else 100 - zeros)
    assert ((decode(encode(array, values), (100,)) != 0) == (array != 0)).all()


@settings(deadline=None, max_examples=300)
@given(arrays())
def test_float32_is_exact(array):
    blob = encode(array)
    back = decode(blob, array.shape)
    assert back.shape == array.shape
    assert back.dtype == np.float32
    assert (bits(back) == bits(array)).all()
    head = read_header(blob)
    assert head.kept == (array.size if head.positions == DENSE else np.count_nonzero(bits(array)))


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.uint32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
def test_any_bits_come_back(raw):
    assert (bits(decode(encode(float32(raw)), raw.shape)) == raw).all()


@settings(deadline=None, max_examples=200)
@given(arrays(odd=False, lowest=-160, highest=5), st.sampled_from(TYPES))
def test_positions_are_exact_and_values_settle(array, values):
    blob = encode(array, values)
    packed = unpack(blob, array.shape)
    if packed.header.positions != DENSE:
        assert packed.positions.tolist() == np.flatnonzero(bits(array)).tolist()
    once = decode(blob, array.shape)
    again = decode(encode(once, values), array.shape)
    assert (bits(again) == bits(once)).all()


@settings(deadline=None, max_examples=200)
@given(arrays())
def test_half_precision_rounds_to_nearest(array):
    array = np.where(np.isfinite(array) & (np.abs(array) > 3.39e38), np.float32(1), array)
    back = decode(encode(array, "bfloat16"), array.shape)
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    number = ~np.isnan(array)
    assert (bits(back)[number] == bits(expected)[number]).all()
    assert np.isnan(back[~number]).all()
    fits = np.where(np.isfinite(array) & (np.abs(array) > 65504), np.float32(1), array)
    back = decode(encode(fits, "float16"), array.shape)
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        expected = fits.astype(np.float16).astype(np.float32)
    assert (bits(back)[number] == bits(expected)[number]).all()
    assert np.isnan(back[~number]).all()


@settings(deadline=None, max_examples=200)
@given(arrays(odd=False, lowest=-160, highest=124), st.sampled_from(sorted(LEVELS)))
def test_integers_err_by_half_a_scale(array, values):
    packed = unpack(encode(array, values), array.shape)
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1 if array.size else 0).astype(float)
    error = np.abs(decode(encode(array, values), array.shape).reshape(rows.shape) - rows)
    for row, wrong, scale in zip(rows, error, packed.scales.astype(float), strict=True):
        peak = np.abs(row).max(initial=0)
        full = max(peak / LEVELS[values], 2.0**-126 if peak else 0)  # no scale is below the normal numbers
        limit = 2.0**-127  # half of that, where float32 has no peak / 127
        if values == "int8":
            assert full - 2.0**-148 <= scale <= full * (1 + 2**-15) or peak < 2.0**-141
            assert (wrong <= max(scale / 2 * (1 + 2**-20), limit)).all()
        else:  # cut off at 0.6 of the peak or later
            assert scale <= full * (1 + 2**-15)
            inside = np.abs(row) <= 7 * scale
            assert (wrong[inside] <= max(scale / 2 * (1 + 2**-20), limit)).all()
            assert (wrong <= max(0.4 * peak * (1 + 2**-15), limit)).all()


@pytest.mark.parametrize(("others", "scale"), [(99, 1 / 7), (9999, 0.1)])
def test_int4_cuts_off_an_outlier_where_that_pays(others, scale):
    # Steps of 1/7 make 2/7 of 0.3, an error of 99 x 0.0143^2 = 0.02 or 9999 x 0.0143^2 = 2. With a cut
    # at 0.7 steps of 0.1 meet 0.3, and 1.0 becomes 0.7: an error of 0.09.
    row = np.append(np.full(others, 0.3, np.float32), np.float32(1))
    assert unpack(encode(row, "int4"), row.shape).scales == pytest.approx([scale], rel=2**-15)


@settings(deadline=None, max_examples=100)
@given(arrays(), st.integers(0, 20))
def test_positions_take_no_more_than_a_bitmask(array, clustered):
    flat = array.reshape(-1)
    flat[len(flat) // 20 * clustered :] = 0
    head = read_header(encode(array, "mask"))
    assert len(encode(array, "mask")) - head.size <= -(-array.size // 8)


@pytest.mark.parametrize("density", [0.03, 0.05, 0.1])
def test_positions_take_little_more_than_their_entropy(density):
    count = 300_000
    array = (np.random.default_rng(0).random(count) < density).astype(np.float32)
    p = array.mean(dtype=float)
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    blob = encode(array, "mask")
    assert 8 * (len(blob) - read_header(blob).size) <= 1.05 * entropy * count + 8 * 32


SMALL = {
    "dense": (np.array([1, 2, 3], np.float32), "float32"),
    "bitmask": (at((3, 4), {0: 7, 2: -3, 11: 14}), "int4"),
    "gaps": (at((8, 10), {6: 1, 48: -2, 62: 3}), "bfloat16"),
    "empty": (np.zeros((4, 4), np.float32), "int8"),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_and_every_changed_byte_is_seen(name):
    array, values = SMALL[name]
    blob = encode(array, values)
    for place in range(len(blob)):
        changed = [blob ^ np.uint8(flip) * (np.arange(len(blob)) == place) for flip in (1, 0x80, 0xFF)]
        for bad in (blob[:place], blob_of(blob[: max(place, 12)].tobytes()), *changed):
            with pytest.raises(CodecError):
                decode(bad, array.shape)


THREE = bytes.fromhex("803F 00C0 4040")  # three values of bfloat16
PLACES = bytes([0b110, 0b001, 1 << 1, 1 << 4, 1 << 0])  # as in test_gaps_of_bfloat16: 6, 48, 62
FORGED = {
    "not packed": (header(GAPS, BFLOAT16, 3, [80], 2, magic=b"\x93NUM"), THREE + PLACES),
    "format version 2": (header(GAPS, BFLOAT16, 3, [80], 2, version=2), THREE + PLACES),
    "header": (header(3, BFLOAT16, 3, [80], 2), THREE + PLACES),
    "header ": (header(GAPS, 6, 3, [80], 2), THREE + PLACES),
    "header  ": (header(GAPS, BFLOAT16, 3, [80], 32), THREE + PLACES),
    "invalid header": (header(BITMASK, BFLOAT16, 3, [80], 2), THREE + bytes(10)),
    "invalid": (header(GAPS, BFLOAT16, 3, [80], 2, zeros=(1, 0)), THREE + PLACES),
    "invalid ": (header(GAPS, BFLOAT16, 3, [80], 2, zeros=(0, 1)), THREE + PLACES),
    "invalid  ": (header(GAPS, BFLOAT16, 3, [80, *[1] * 8], 2), THREE + PLACES),
    r"shape \(79,\), expected \(80,\)": (header(GAPS, BFLOAT16, 3, [79], 2), THREE + PLACES),
    r"shape \(9223372036854775808,\)": (header(GAPS, BFLOAT16, 3, [2**63], 2), THREE + PLACES),
    r"shape \(1, 80\)": (header(GAPS, BFLOAT16, 3, [1, 80], 2), THREE + PLACES),
    "81 of 80": (header(GAPS, MASK, 81, [80]), b""),
    "18446744073709551615 of 80": (header(GAPS, MASK, 2**64 - 1, [80]), b""),
    "79 of 80": (header(DENSE, MASK, 79, [80]), b""),
    "cut off": (header(DENSE, FLOAT32, 80, [80]), bytes(319)),
    "1 bytes too many": (header(DENSE, MASK, 80, [80]), b"\0"),
    "2 bytes too many": (header(GAPS, BFLOAT16, 0, [80]), b"\0\0"),
    "bitmask has 11 bytes for 80": (header(BITMASK, BFLOAT16, 3, [80]), THREE + bytes([7, *[0] * 10])),
    "bitmask has 9 bytes for 80": (header(BITMASK, BFLOAT16, 3, [80]), THREE + bytes([7, *[0] * 8])),
    "3 elements are stored, and gives 4": (header(BITMASK, BFLOAT16, 3, [80]), THREE + bytes([15, *[0] * 9])),
    "gaps are cut off": (header(GAPS, BFLOAT16, 3, [80], 6), THREE + PLACES),
    "3 elements are stored, and gives 2 gaps": (header(GAPS, BFLOAT16, 3, [80], 2), THREE + PLACES[:-1]),
    "4 elements are stored, and gives 3 gaps": (header(GAPS, MASK, 4, [80], 2), PLACES),
    "bytes follow": (header(GAPS, BFLOAT16, 3, [80], 2), THREE + PLACES + b"\0"),
    "past the last of 80": (header(GAPS, BFLOAT16, 3, [80], 2), THREE + bytes([0, 0, 2, 16, 64])),
    "past the last of 80 ": (header(GAPS, MASK, 1, [80], 31), bytes(31) + b"\2"),
    "a position is 127, and": (header(GAPS, MASK, 1, [80], 7), b"\1" * 8),
    "a position is 80, and": (header(GAPS, MASK, 1, [80], 6), b"\0\0\0\0\1\0\2"),
}


@pytest.mark.parametrize("says", FORGED)
def test_forged_with_a_right_checksum(says):
    with pytest.raises(CodecError, match=says.rstrip()):
        decode(blob_of(*FORGED[says]), (80,))


def test_what_is_forged_is_otherwise_right():
    assert unpack(blob_of(header(GAPS, BFLOAT16, 3, [80], 2), THREE + PLACES), (80,)).positions[1] == 48
    blob = blob_of(header(GAPS, MASK, 1, [80], 6), b"\1\1\1\1\0\0\2")  # 15 + 64
    assert unpack(blob, (80,)).positions.tolist() == [79]


def test_bits_beyond_the_last_element():
    blob = blob_of(header(BITMASK, MASK, 3, [10]), bytes([0b1010, 0b1000]))  # 1, 3 and 11
    with pytest.raises(CodecError, match="a position is 11, and there are 10 elements"):
        decode(blob, (10,))


@pytest.mark.parametrize("values", [INT8, INT4])
@pytest.mark.parametrize("scale", [-1.0, -1e-30, math.nan, math.inf, -math.inf, 3e38])
def test_scales_that_are_none(scale, values):
    blob = blob_of(header(DENSE, values, 2, [2, 1]), struct.pack("<2f", 1, scale), b"\x81\x7f"[: 6 - values])
    with pytest.raises(CodecError, match="a scale is negative, too large or not finite"):
        decode(blob, (2, 1))


@pytest.mark.parametrize(("values", "lowest", "limit"), [(INT8, 0x80, 2.0**121), (INT4, 0x08, 2.0**125)])
def test_no_level_times_a_scale_is_infinite(values, lowest, limit):
    largest = np.nextafter(np.float32(limit), np.float32(0))
    blob = blob_of(header(DENSE, values, 1, [1]), largest.tobytes(), bytes([lowest]))
    assert -math.inf < decode(blob, (1,))[0] < -3.4e38
    with pytest.raises(CodecError, match="too large"):
        decode(blob_of(header(DENSE, values, 1, [1]), struct.pack("<f", limit), bytes([lowest])), (1,))


def test_values_that_a_type_cannot_hold():
    for values in ("int8", "int4"):
        for bad in (math.nan, math.inf, -math.inf, 3e38):
            with pytest.raises(CodecError, match=r"not finite or beyond 2\^127"):
                encode(np.array([1, bad], np.float32), values)
        assert decode(encode(float32([0x7F000000]), values), (1,))[0] == pytest.approx(2.0**127, rel=2**-15)
    with pytest.raises(CodecError, match="65520 does not fit float16; use bfloat16 or float32"):
        encode(np.array([1, -65520, math.inf], np.float32), "float16")
    assert decode(encode(np.array([65519], np.float32), "float16"), (1,)) == 65504
    with pytest.raises(CodecError, match=r"3\.4e\+38 does not fit bfloat16; use float32"):
        encode(np.array([1, -3.4e38, math.inf], np.float32), "bfloat16")
    odd = float32([0x7F7F7FFF, 0x7F800000, 0xFF800000])  # the largest that rounds down, and infinities
    assert bits(decode(encode(odd, "bfloat16"), (3,))).tolist() == [0x7F7F0000, 0x7F800000, 0xFF800000]
    with pytest.raises(CodecError, match="'int5': allowed are mask, float32"):
        encode(np.ones(3, np.float32), "int5")
    with pytest.raises(CodecError, match="9 dimensions; 8 are the most"):
        encode(np.ones([1] * 9, np.float32))


def test_what_looks_like_a_blob():
    blob = encode(np.ones(3, np.float32))
    assert codec.is_blob(blob)
    for other in (blob.view(np.int8), blob.reshape(1, -1), blob[:3], blob[1:], np.zeros(0, np.uint8)):
        assert not codec.is_blob(other)
