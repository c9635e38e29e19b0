"""Hostile recordings: what they claim is changed, and every checksum is put right again."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_td_callback.store.blocks import FRAME_BYTES, METADATA, STATE, Frame, Root
from paddle_td_callback.store.disk import RawFile
from paddle_td_callback.store.hdf5_format import BEFORE_AT, ROOT_AT, SLACK_BYTES, padded, superblock
from paddle_td_callback.store.state import newest_state

Facts = dict[str, Any]


def newest(path: Path) -> Root:
    file = RawFile(str(path), os.O_RDONLY)
    try:
        return newest_state(file)[0]
    finally:
        file.close()


def frame_of(content: bytes, at: int) -> Frame:
    """The frame of the block at an address."""
    frame = Frame.unpack(bytes(content[at - FRAME_BYTES : at]), at - FRAME_BYTES)
    assert frame is not None
    return frame


def put_block(content: bytearray, frame_at: int, kind: int, body: bytes, long: int, run: int) -> None:
    """Write a block and its frame over whatever is there."""
    frame = Frame(kind, 0, *divmod(long, 1 << 32), len(body), zlib.crc32(body), run).pack(frame_at)
    end = frame_at + FRAME_BYTES + len(body)
    content.extend(bytes(max(0, end - len(content))))
    content[frame_at:end] = frame + body


def put_roots(content: bytearray, *, newest: int | None = None, before: int | None = None) -> None:
    """Let the first sector say where the newest commit is, and the one before."""
    for place, at in ((ROOT_AT, newest), (BEFORE_AT, before)):
        if at is not None:
            content[place : place + 8] = struct.pack("<Q", at % 2**64)


def forge(
    path: Path,
    change_state: Callable[[Facts], Any] = lambda facts: None,
    change_nodes: Callable[[bytearray], Any] = lambda nodes: None,
    change_metadata: Callable[[bytearray], Any] = lambda metadata: None,
) -> None:
    """Change what the newest commit says, with all checksums right; nothing leads to the commit before.

    Args:
        path: a recording.
        change_state: changes the state's facts.
        change_nodes: changes the chunk trees' nodes in the state.
        change_metadata: changes the HDF5 metadata for other readers.
    """
    root = newest(path)
    content = bytearray(path.read_bytes())[: root.end]
    run = frame_of(content, root.state).run
    state, metadata = (bytearray(content[at : at + frame_of(content, at).n_bytes]) for at in root[:2])
    facts_at = len(state) - 4 - int.from_bytes(state[-4:], "little")
    nodes, facts = state[:facts_at], json.loads(state[facts_at:-4])
    change_nodes(nodes)
    change_state(facts)
    change_metadata(metadata)
    del content[root.state - FRAME_BYTES :]
    text = json.dumps(facts, separators=(",", ":")).encode()
    body = bytes(nodes) + text + struct.pack("<I", len(text))
    put_block(content, len(content), STATE, body, 0, run)
    content.extend(bytes(-len(content) % 8))
    at = root.state + padded(len(body)) + FRAME_BYTES
    put_block(content, len(content), METADATA, bytes(metadata), root.state, run)
    content.extend(bytes(-len(content) % 8))
    content[: BEFORE_AT + 8] = superblock(at, len(content) + SLACK_BYTES, at)
    path.write_bytes(bytes(content) + bytes(SLACK_BYTES))
