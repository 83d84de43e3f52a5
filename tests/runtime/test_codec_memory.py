"""A few bytes cannot ask for all of the memory."""

import tracemalloc

import numpy as np
import pytest
from runtime.blobs import BITMASK, DENSE, FLOAT32, GAPS, INT4, INT8, MASK, blob_of, header

from fineprune_runtime import codec
from fineprune_runtime.codec import CodecError, decode, encode, read_header, unpack


@pytest.mark.parametrize("shape", [(2**63,), (2**63, 2**63), (2**64 - 1,) * 8, (2**40,), (2**63, 0)])
@pytest.mark.parametrize(("form", "values"), [(GAPS, FLOAT32), (DENSE, MASK), (BITMASK, INT8), (GAPS, INT4)])
def test_a_huge_shape_allocates_nothing(shape, form, values):
    blob = blob_of(header(form, values, 3, shape), bytes(100))
    tracemalloc.start()
    try:
        assert read_header(blob).shape == shape
        for expected in ((3,), shape):  # the second: a caller who believed the header
            with pytest.raises(CodecError):
                decode(blob, expected)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("form", "values", "kept", "payload"),
    [(GAPS, FLOAT32, 1, bytes(4) + b"\1"), (GAPS, INT4, 0, None), (DENSE, MASK, 3_200_000_000, b"")],
)
def test_an_array_out_of_all_proportion_to_its_bytes(form, values, kept, payload):
    # 3.2e9 elements, 12.8 GB, which the caller asks for as well, from a few bytes or 8 MB of scales.
    shape = (2_000_000, 1600)
    payload = bytes(4 * shape[0]) if payload is None else payload
    blob = blob_of(header(form, values, kept, shape), payload)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=r"bytes say that they hold an array of 12,800,000,000 bytes"):
            decode(blob, shape)
        if form == DENSE:
            with pytest.raises(CodecError, match=r"an array of 25,600,000,000 bytes; the file is damaged"):
                unpack(blob, shape)
        else:
            assert unpack(blob, shape).positions.tolist() == [0] * kept
        assert tracemalloc.get_traced_memory()[1] < 8 * len(blob) + 1_000_000
    finally:
        tracemalloc.stop()


def test_a_matrix_that_was_pruned_to_nothing(monkeypatch):
    monkeypatch.setattr(codec, "SMALL", 40_000)
    assert not decode(encode(np.zeros(10_000, np.float32)), (10_000,)).any()
    with pytest.raises(CodecError, match="32 bytes say that they hold an array of 40,004 bytes"):
        decode(encode(np.zeros(10_001, np.float32)), (10_001,))


def test_the_memory_is_full(monkeypatch):
    def zeros(*_):
        raise MemoryError

    blob = encode(np.array([0, 1, 0, 0], np.float32))
    monkeypatch.setattr(np, "zeros", zeros)
    with pytest.raises(CodecError, match="16 bytes of memory are not available"):
        decode(blob, (4,))
