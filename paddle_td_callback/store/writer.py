"""Making a recording, or taking one over."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import h5py
import numpy as np

from .._version import __version__
from ..errors import StoreError
from . import disk
from .blocks import ARRAY, FRAME_BYTES, METADATA, TEXT
from .commits import EpochLog
from .disk import RawFile
from .hdf5_format import ChunkTree, text_heaps
from .paths import check_path, make_beside, move_into_place
from .schema import LABELS, TEXTS, Layout
from .state import State, newest_state


class StoreWriter(EpochLog):
    """The one writer of a recording; made by `create` or `resume`."""

    _is_new = False

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: Layout,
        *,
        class_names: Sequence[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        label_shifts: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> StoreWriter:
        """Make an empty recording. With `overwrite` it replaces a file once its first epoch is committed.

        Args:
            path: where; its folder must exist.
            layout: the fixed facts of the recording.
            class_names: one for each class.
            sample_ids: one for each sample, no two alike.
            label_shifts: for each sample by how many classes its label was moved on purpose, in digits.
            overwrite: replace an existing file.

        Raises:
            StoreError: see `check_path`; or a recorder is writing the file to replace; or the disk refused.
            ValueError: a wrong number of names.
        """
        name = check_path(path, overwrite=overwrite)
        given = dict(zip(TEXTS, (class_names, sample_ids, label_shifts), strict=True))
        names = {kind: texts for kind, texts in given.items() if texts is not None}
        for kind, texts in names.items():
            if len(texts) != layout.n_names(kind):
                raise ValueError(f"{kind} must have {layout.n_names(kind)} names, got {len(texts)}")
        real = os.path.realpath(name)
        with contextlib.ExitStack() as undo:
            try:
                replaced = lock_replaced(name, real) if overwrite and os.path.exists(real) else None
                if replaced is not None:
                    undo.callback(replaced.close)
                fresh = make_beside(real)
                undo.callback(_unlink, fresh)
                writer = cls(disk.RawFile(fresh, os.O_RDWR, name), fresh)
                undo.callback(writer._file.close)
                writer._lay_out(layout, names)
                if replaced is None:
                    move_into_place(fresh, real, overwrite=False)
                    writer._real = real
            except OSError as error:
                raise StoreError(f"'{name}' cannot be created: {error}; give another path") from error
            undo.pop_all()
        writer._is_new = True
        writer._will_replace = None if replaced is None else (real, replaced)
        return writer

    def _lay_out(self, layout: Layout, names: Mapping[str, Sequence[str]]) -> None:
        """Write a recording without epochs into an empty file."""
        self._begin()
        places = {}
        for kind, given in names.items():
            first = self._end + FRAME_BYTES
            references = text_heaps(map(encode_name, given), lambda heap: self._append_block(TEXT, heap))
            places[kind] = [self._append_block(ARRAY, references), first]
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        paddle = getattr(sys.modules.get("paddle"), "__version__", "none")
        libraries = f"paddle {paddle}, h5py {h5py.__version__}, numpy {np.__version__}"
        versions = f"paddle_td_callback {__version__}, {libraries}"
        state = State(layout, created, versions, places, self._end + FRAME_BYTES)
        self._go_on_from(state)
        self._append_block(METADATA, self._constants.raw)
        with self._transaction():
            labels = np.full(layout.n_samples, LABELS.unseen, np.int32)
            self._commit(0, [ChunkTree(one) for one in layout.fields], labels, [])

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        layout: Layout | None = None,
        *,
        n_epochs: int | None = None,
    ) -> StoreWriter:
        """Open a recording to go on after its last committed epoch.

        Args:
            path: an existing recording.
            layout: what the caller is about to record, but for compression. None takes the file's.
            n_epochs: how many epochs to keep, for a training that goes on from an older checkpoint. The first commit
                drops the others. None keeps all.

        Raises:
            StoreError: not such a file, another recording than `layout`, fewer epochs than `n_epochs`, damaged,
                or another process is recording into it.
        """
        file = disk.open_recording(check_path(path, resume=True), os.O_RDWR)
        writer = cls(file, os.path.realpath(file.name))
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            writer._go_on(layout, n_epochs)
            undo.pop_all()
        return writer

    def _go_on(self, layout: Layout | None, n_epochs: int | None) -> None:
        file, name = self._file, self.path
        root, state, wrong = newest_state(file)
        if wrong is not None:
            raise wrong
        for fact in ("n_samples", "n_classes", "keep", "dtype", "mode"):
            old, new = getattr(state.layout, fact), getattr(layout or state.layout, fact)
            if old != new:
                raise StoreError(
                    f"'{name}' was recorded with {fact}={old!r}, this training has {new!r}; "
                    "resume needs the same, so record to another path"
                )
        n_kept = state.n_epochs if n_epochs is None else n_epochs
        if not 0 <= n_kept <= state.n_epochs:
            raise StoreError(
                f"'{name}' has {state.n_epochs} epochs, so the first {n_kept} cannot be kept; "
                f"give a number up to {state.n_epochs}"
            )
        self._written = state.read_labels(file), state.read_dropped(file)
        self.labels, self._dropped = self._written
        self._trees = [tree.cut(n_kept) for tree in state.trees(file)]
        self._go_on_from(state)
        self._begin(root)
        if n_kept < state.n_epochs:  # in the file, the first commit drops the others: until then they stay
            self._state = replace(state, n_epochs=n_kept)
            self._dropped = [one for one in self._dropped if one < n_kept]
            if not n_kept:
                self.labels = np.full_like(self.labels, LABELS.unseen)

    def drop_others(self) -> None:
        """Commit that only the epochs which `resume` kept are there; OSError as `commit_epoch`."""
        with self._transaction():
            self._commit(self.n_epochs, self._trees, self.labels, self._dropped)

    def close(self) -> None:
        """Release the file, and remove it if it is new and holds no epoch. Closing twice is fine."""
        if self._is_new and self.n_epochs == 0 and self._file.is_at(self._real):
            _unlink(self._real)
        super().close()
        if self._will_replace is not None:
            self._will_replace[1].close()


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def lock_replaced(name: str, real: str) -> RawFile:
    """Hold the lock of a file that will be replaced, so that nobody records into it meanwhile."""
    file = disk.RawFile(real, os.O_RDWR, name)
    with contextlib.suppress(OSError):  # a file system without locks
        disk.lock(file)
    return file


def encode_name(name: str) -> bytes:
    """UTF-8; what an undecodable file name holds stays as it was, other lone surrogates are spelt out."""
    try:
        return str(name).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return str(name).encode("utf-8", "backslashreplace")
