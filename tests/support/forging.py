"""Hostile recordings: what they claim is changed, and every checksum is put right again."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_td_callback.store import commits
from paddle_td_callback.store.commits import (
    FRAME_BYTES,
    HEAD,
    METADATA,
    RECORDS_AT,
    STATE,
    Commit,
    Frame,
    RawFile,
)
from paddle_td_callback.store.hdf5_format import SLACK_BYTES, padded, superblock
from paddle_td_callback.store.metadata import pack_facts, unpack_facts

Facts = dict[str, Any]


def newest(path: Path) -> Commit:
    file = RawFile(str(path), os.O_RDONLY)
    try:
        return commits.commits(file)[0]
    finally:
        file.close()


def run_of(content: bytearray, commit: Commit) -> int:
    at = commit.at - FRAME_BYTES
    frame = Frame.unpack(bytes(content[at : commit.at]), at)
    assert frame is not None
    return frame.run


def put_block(content: bytearray, frame_at: int, kind: int, body: bytes, long: int, run: int) -> None:
    """Write a block and its frame over whatever is there."""
    frame = Frame(kind, 0, long >> 32, long & 0xFFFFFFFF, len(body), zlib.crc32(body), run).pack(frame_at)
    end = frame_at + FRAME_BYTES + len(body)
    content.extend(bytes(max(0, end - len(content))))
    content[frame_at:end] = frame + body


def put_record(content: bytearray, slot: int, commit: Commit) -> None:
    record = struct.pack("<8sQQQ", b"PTDcommt", *commit)
    content[RECORDS_AT[slot] : RECORDS_AT[slot] + 36] = record + struct.pack("<I", zlib.crc32(record))


def forge(
    path: Path,
    change_state: Callable[[Facts], Any] = lambda facts: None,
    change_head: Callable[[Facts], Any] = lambda facts: None,
    change_nodes: Callable[[bytearray], Any] = lambda nodes: None,
    change_metadata: Callable[[bytearray], Any] = lambda metadata: None,
) -> None:
    """Change what the newest commit says, with all checksums right.

    Args:
        path: a recording.
        change_state: changes the state's facts.
        change_head: changes the head's facts; a head with other facts is appended before the state.
        change_nodes: changes the chunk indexes' nodes in the state.
        change_metadata: changes the HDF5 metadata for other readers.
    """
    commit = newest(path)
    content = bytearray(path.read_bytes())[: commit.end]

    def block_at(at: int) -> bytes:
        frame = Frame.unpack(bytes(content[at - FRAME_BYTES : at]), at - FRAME_BYTES)
        assert frame is not None
        return bytes(content[at : at + frame.n_bytes])

    def append(kind: int, body: bytes, long: int = 0) -> int:
        at = len(content)
        put_block(content, at, kind, body, long, run)
        content.extend(bytes(-len(content) % 8))
        return at + FRAME_BYTES

    state, run = block_at(commit.at), run_of(content, commit)
    metadata = bytearray(block_at(commit.at + padded(len(state)) + FRAME_BYTES))
    facts = unpack_facts(state)
    head_facts = unpack_facts(block_at(facts["head_at"]))
    nodes = bytearray(state[: -4 - int.from_bytes(state[-4:], "little")])
    del content[commit.at - FRAME_BYTES :]
    before = json.dumps(head_facts)
    change_head(head_facts)
    if json.dumps(head_facts) != before:
        facts["head_at"] = append(HEAD, pack_facts(head_facts))
    moved = len(content) + FRAME_BYTES - commit.at
    for name, root in facts["roots"].items():
        if commit.at <= root < commit.end:
            facts["roots"][name] = root + moved
    change_nodes(nodes)
    change_state(facts)
    at = append(STATE, pack_facts(facts, bytes(nodes)), commit.sequence)
    change_metadata(metadata)
    root = append(METADATA, bytes(metadata), at)
    end = len(content)
    for slot in (0, 1):
        put_record(content, slot, Commit(commit.sequence, at, end))
    content[:96] = superblock(root, end + SLACK_BYTES)
    path.write_bytes(bytes(content) + bytes(SLACK_BYTES))
