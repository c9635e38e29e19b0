"""Chunks of our making are what HDF5's own filters would have written, and read back by both."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_td_callback.store.chunks import checksums, decode_chunk, encode_chunk


def fletcher32(data):
    return int.from_bytes(checksums(data)[0], "little")


def encoded_bytes(block, gzip_level):
    payload, fletcher, checksum = encode_chunk(block, gzip_level=gzip_level)
    assert (fletcher, checksum) == checksums(payload)
    return bytes(payload) + fletcher


def creation_properties(chunk_shape, fill_value, *, gzip_level):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(chunk_shape)
    properties.set_fill_value(np.asarray(fill_value))
    if gzip_level is not None:
        properties.set_shuffle()
        properties.set_deflate(gzip_level)
    properties.set_fletcher32()
    return properties


def naive_fletcher32(data):
    """The definition: two running sums of big-endian words, with end-around carry."""
    first = second = 0
    for at in range(0, len(data), 2):
        first += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        second += first
    if first == 0:
        return 0
    return ((second - 1) % 65535 + 1) << 16 | ((first - 1) % 65535 + 1)


def test_fletcher32_of_hand_worked_words():
    # Words 0x0102 and 0x0304: sums 0x0102 and 0x0102 + 0x0406.
    assert fletcher32(b"\x01\x02\x03\x04") == (0x0508 << 16) | 0x0406
    assert fletcher32(b"") == 0
    assert fletcher32(bytes(100)) == 0
    assert fletcher32(b"\xff\xff") == 0xFFFFFFFF
    assert fletcher32(b"\x01") == (0x0100 << 16) | 0x0100


@given(st.binary(max_size=600))
def test_fletcher32_is_its_definition(data):
    assert fletcher32(data) == naive_fletcher32(data)


@pytest.mark.parametrize("n_bytes", [4095, 4096, 4097, 8192, 65536, 1 << 20, (1 << 20) + 3])
@pytest.mark.parametrize("fill", ["random", 0, 255])
def test_fletcher32_is_hdf5s(n_bytes, fill, tmp_path):
    rng = np.random.default_rng(n_bytes)
    data = rng.integers(0, 256, n_bytes, np.uint8) if fill == "random" else np.full(n_bytes, fill, np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=data, chunks=(n_bytes,), fletcher32=True)
        file.flush()
        stored = dataset.id.read_direct_chunk((0,))[1]
    assert stored[-4:] == fletcher32(data).to_bytes(4, "little")


@pytest.mark.parametrize("gzip_level", [None, 1, 9])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<i4", "u1"])
@pytest.mark.parametrize("shape", [(7,), (16, 3)])
def test_hdf5_reads_what_is_encoded_and_decode_gives_it_back(gzip_level, dtype, shape, tmp_path):
    rng = np.random.default_rng(1)
    block = (rng.normal(size=shape) * 50).astype(dtype)
    encoded = encoded_bytes(block, gzip_level)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        space = h5py.h5s.create_simple(shape)
        properties = creation_properties(shape, np.zeros((), dtype), gzip_level=gzip_level)
        h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(np.dtype(dtype)), space, properties)
        file["x"].id.write_direct_chunk((0,) * len(shape), encoded)
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["x"][:], block)
        assert file["x"].fletcher32
        assert file["x"].compression == (None if gzip_level is None else "gzip")
    decoded = decode_chunk(encoded, shape, dtype, gzip_level=gzip_level)
    np.testing.assert_array_equal(decoded, block)


@given(st.binary(max_size=60), st.integers(0, 59), st.integers(1, 255))
def test_a_changed_byte_changes_the_checksum_of_the_frame(data, at, change):
    changed = bytearray(data)
    if not data:
        return
    changed[at % len(data)] ^= change
    assert checksums(bytes(changed))[1] != checksums(data)[1]


def test_words_that_fletcher_confounds_are_told_apart():
    ones, zeros = b"\xff" * 64, b"\xff" * 32 + bytes(32)
    assert checksums(ones)[0] == checksums(zeros)[0]
    assert checksums(ones)[1] != checksums(zeros)[1]


def test_an_uncompressed_chunk_lies_where_its_numbers_do():
    block = np.arange(40, dtype="<f4").reshape(4, 10)
    assert np.shares_memory(np.asarray(encode_chunk(block, gzip_level=None)[0]), block)


def test_a_chunk_of_another_size_is_refused():
    encoded = encoded_bytes(np.zeros(10, "<f4"), 1)
    with pytest.raises(ValueError, match="wanted 36"):
        decode_chunk(encoded, (9,), "<f4", gzip_level=1)
    with pytest.raises(ValueError, match="wanted 36"):
        decode_chunk(b"abc", (9,), "<f4", gzip_level=None)
    no_stream = b"no gzip stream!!"
    with pytest.raises(ValueError, match="cannot be decompressed"):
        decode_chunk(no_stream + fletcher32(no_stream).to_bytes(4, "little"), (9,), "<f4", gzip_level=1)


@pytest.mark.parametrize("start", [0, 2049, 4000, 8191])
def test_a_sector_with_as_many_words_of_each_kind_does_not_pass_for_another(start):
    """Words of 0 and 0xffff, which are the same to Fletcher's checksum, in another order."""
    rng = np.random.default_rng(start)
    chunk = np.where(rng.random(40_000) < 0.5, 0, 0xFFFF).astype("<u2")
    changed = chunk.copy()
    changed[start : start + 256] = rng.permutation(chunk[start : start + 256])
    assert (changed != chunk).any()
    assert checksums(changed.tobytes())[0] == checksums(chunk.tobytes())[0]
    assert checksums(changed.tobytes())[1] != checksums(chunk.tobytes())[1]
