"""HDF5's own structures, as h5py reads them."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_td_callback.store import hdf5_format as h5
from paddle_td_callback.store.blocks import DamagedError
from paddle_td_callback.store.hdf5_format import SLACK_BYTES, UNDEFINED, ChunkTree
from paddle_td_callback.store.schema import Field
from paddle_td_callback.store.state import StoredTree


def write_file(path, build):
    """A file whose root group has the members that `build(put)` gives."""
    raw = bytearray(4096)

    def put(block):
        raw.extend(bytes(-len(raw) % 8))
        raw.extend(block)
        return len(raw) - len(block)

    members = build(put)
    heap, places = h5.local_heap(members, put)
    root = put(h5.header([h5.symbol_table(heap, places, members, put)]))
    raw[:104] = h5.superblock(root, len(raw) + SLACK_BYTES, 0)
    path.write_bytes(bytes(raw) + bytes(SLACK_BYTES))
    return bytes(raw)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 8, 64]), st.integers(0, 300), st.integers(1, 40))
def test_h5py_finds_every_chunk_after_each_commit(tmp_path_factory, fan_out, n_chunks, step):
    """The naive oracle: chunk i holds the number i. A tree cut from a file goes on like the first."""
    path = tmp_path_factory.mktemp("tree") / "x.h5"

    field = Field("x", None, "int64", -1, "", number=0, shape=(), chunk_rows=1, n_chunks=1)

    def new_tree():
        tree = ChunkTree(field)
        tree.fan_out = fan_out
        return tree

    def stored_tree(count, root):
        state = SimpleNamespace(n_epochs=count, roots=[root], at=0, nodes=raw)
        tree = StoredTree(SimpleNamespace(name="x.h5"), state, field)
        tree.fan_out = fan_out
        return tree

    roots, tree = [], new_tree()

    def build(put):
        for number in range(n_chunks):
            tree.append(put(np.int64(number).tobytes()), 8, put)
            if number % step == 0:
                roots.append((number + 1, write_copy(tree, put)))
        roots.append((n_chunks, tree.write(put)))
        members = {}
        for i, (count, root) in enumerate(roots[-9:]):
            layout = h5.chunked_layout((1,), 8, root)
            fill = 0x05, b"\x02\x03\x02\x01\x08\0\0\0" + np.int64(-1).tobytes()
            kind = 0x03, h5.datatype(np.dtype("<i8"))
            space = 0x01, h5.dataspace((count,), (None,))
            members[f"d{i}"] = put(h5.header([space, kind, fill, layout]))
        return members

    def write_copy(tree, put):
        copy = tree.copy()
        copy.fan_out = fan_out
        return copy.write(put)

    raw = write_file(path, build) + bytes(SLACK_BYTES)

    with h5py.File(path) as file:
        for i, (count, root) in enumerate(roots[-9:]):
            np.testing.assert_array_equal(file[f"d{i}"][:], np.arange(count))
            found = stored_tree(count, root)
            places = [found.find(number, 0) for number in range(count)]
            assert [int.from_bytes(raw[at : at + 8], "little") for at, _ in places] == list(range(count))
            assert {n_bytes for _, n_bytes in places} <= {8}
            assert (root == UNDEFINED) == (count == 0)
            for n_kept in {0, 1, count // 2, count - 1, count} & set(range(count + 1)):
                fresh = new_tree()
                for at, n_bytes in places[:n_kept]:
                    fresh.append(at, n_bytes, lambda node: 0)
                again = found.cut(n_kept)
                assert [len(level) for level in again._levels] == [len(level) for level in fresh._levels]
                assert again._levels[0] == fresh._levels[0]
            for wrong in {count - 1, count + 1} - {-1, 0, 1}:
                with pytest.raises(DamagedError, match=r"'x' is damaged: at byte .* is no node of its level"):
                    stored_tree(wrong, root).find(wrong - 1, 0)


TEXTS = {
    "none": [],
    "one": ["x"],
    "empty ones": ["", "", "a"],
    "many": [f"{i}" for i in range(100_000)],
    "long": ["y" * n for n in (65_519, 65_520, 65_521, 1_000_000, 1)],
    "odd lengths": ["ä" * n for n in range(300)],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_h5py_reads_texts(kind, tmp_path):
    texts, heaps = TEXTS[kind], []

    def build(put):
        def put_heap(heap):
            heaps.append(heap)
            return put(heap)

        references = h5.text_heaps((one.encode() for one in texts), put_heap)
        space, kind, place = h5.contiguous(None, len(texts), put(references))
        return {"texts": put(h5.header([space, *kind, place]))}

    write_file(tmp_path / "x.h5", build)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["texts"].asstr()[:].tolist() == texts
    assert [one.decode() for heap in heaps for one in h5.heap_texts(heap)] == texts


def test_the_texts_of_a_heap_end_where_it_ends():
    heap = []
    h5.text_heaps([b"one", b"another text"], lambda block: heap.append(block) or 0)
    (whole,) = heap
    assert h5.heap_texts(whole) == [b"one", b"another text"]
    without_free_space = whole[: 16 + 24 + 32]
    assert h5.heap_texts(without_free_space) == [b"one", b"another text"]
    assert h5.heap_texts(without_free_space[:-12]) == [b"one"]
    assert h5.heap_texts(b"") == []
