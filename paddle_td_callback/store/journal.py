"""Transactions under HDF5: a set of changes reaches the file whole, or not at all, and is read back checked.

HDF5 rewrites its metadata in place, so a process that is killed between two of those writes leaves a file
that nobody can open. Here HDF5 never writes in place by itself. It runs on a file object of ours, which

1. passes everything past the old end of the file straight to disk, where nothing refers to it yet;
2. keeps every change below the old end in memory. These are few: some kilobytes of metadata, whatever the
   size of the data, and the labels that were seen for the first time.

Commit is then: fsync (the data), one checksummed *redo record* of those changes, fsync, and only then the
changes themselves, which the fsync of the next commit makes durable. The redo record lives in the HDF5 user
block, which every HDF5 reader skips, in one of two slots used in turn. The second fsync is the moment of
commit:

* stopped before it, the newest valid record is the previous one: the file is as it was (what was appended is
  cut off by the next writer);
* stopped after it, whoever opens the file replays the record, which may be done any number of times.

The disk is asked to write what was appended while more is being appended, so that little is left to wait for
at commit; what it answers then is kept, for the system reports a failed write only once. Nothing relies on these
early requests. One fsync for data and record together would do, if whoever opens the file then checked the
newest commit's data before believing its record. It was not taken: the second one writes a few kilobytes and
took 0.1 of the 14 ms of a commit where it was measured, and with it a record that is there is one that counts.

A record is overwritten two commits later; the fsync of the commit between makes its changes durable first.
A record too large for its slot is written behind the data instead and its changes are fsynced at once, since
the next transaction will write over it.

What HDF5 reads is checked before HDF5 sees it, for it can be crashed by damaged metadata, and its own
checksums (fletcher32, on chunks alone) call a chunk of zeros sound. The file is divided into *units*; each
commit appends a *seal*: the CRC-32 of every unit that it wrote or changed, and where the seal before is. The
redo record tells place and CRC of the newest seal, so every byte that HDF5 is given is one that was
committed, or reading fails. The CRCs are taken of what passes by on its way to the disk, in a thread of their
own; only of the few units that were not written from front to back they are taken of the file.

Seals lie in space that HDF5 takes for allocated: a commit raises the end of file in HDF5's superblock over its
seal. A seal is one of the changes in the redo record: so it is made while the first fsync runs, and needs none
of its own.

A reader takes the newest record as an overlay, so it never depends on how far the writer has come with the
changes in place. A unit that a later commit has changed under it fails its CRC; the reader then moves on to
the newest commit: no locks, nobody waits.
"""

from __future__ import annotations

import contextlib
import os
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import wait

import h5py
import numpy as np

from ..threads import one_thread, run_beside
from . import disk
from .appending import Appender
from .disk import DamagedError, NotSealedError, Place
from .overlay import OverlayFile, open_h5
from .redo import (
    HEADER_BYTES,
    SLOT_BYTES,
    USER_BLOCK_BYTES,
    Record,
    headers,
    pack_pages,
    page_runs,
    pages_of,
    read_newest_record,
)
from .seals import UNIT_BYTES, SealedFile, Seals

__all__ = ["DamagedError", "Journal", "NotSealedError", "Snapshot", "Transaction"]

_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Transaction:
    """What `Journal.transaction` yields: the HDF5 file `h5`, and a `note` to keep in the commit's seal."""

    def __init__(self, h5: h5py.File, image: OverlayFile, appender: Appender) -> None:
        self.h5 = h5
        self.note = b""
        self._image = image
        self._appender = appender

    def write_chunk(
        self, dataset: h5py.h5d.DatasetID, at: tuple[int, ...], parts: Sequence[memoryview]
    ) -> int:
        """Write one chunk of a dataset as it is to lie in the file.

        HDF5 finds the place and takes note of it; the bytes go there from where they are, without a copy.

        Args:
            dataset: of the transaction's file.
            at: its first element.
            parts: its bytes.

        Returns:
            Where it lies in the file. HDF5's own answer counts from different bytes in different versions.
        """
        dataset.write_direct_chunk(at, self._image.write_instead(parts))
        offset = self._image.written_instead()
        self._appender.proceed()
        return offset


class Journal:
    """The one writer of a file: holds its lock and runs its transactions.

    Args:
        path: an existing file made by `create`.
        durable: whether commits wait for the disk (fsync). Without it a kill loses nothing, a power cut may.

    Raises:
        FileNotFoundError: there is no such file.
        BlockingIOError: another process records into it.
        NotSealedError: the file was not written by this package.
        DamagedError: the file's record or checksums are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = os.fspath(path)
        self._durable = durable
        self._file = disk.open_file(self.path, "r+b")
        try:
            disk.lock(self._file)
            self._recover()
            self._syncer, self._checksummer = one_thread(), one_thread()
        except BaseException:
            self._file.close()
            raise
        _open_journals.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, durable: bool = True) -> Journal:
        """Make an empty HDF5 file at `path`, which must not exist, and open its journal."""
        with contextlib.closing(disk.open_file(path, "x+b")) as file:
            empty = Seals(np.zeros(USER_BLOCK_BYTES // UNIT_BYTES, np.uint32), 0, Place(0, 0, 0))
            image = OverlayFile(file, SealedFile(file, empty, {}), 0, boundary=0)
            h5py.File(image, "w", libver="earliest", userblock_size=USER_BLOCK_BYTES).close()
            image.check()
            disk.write_all(
                file, 0, bytes(USER_BLOCK_BYTES)
            )  # no hole: a record must not fail for want of space
            plan = image.plan_seal(b"")
            seal, seals = image.make_seal(plan)
            disk.write_all(file, plan.offset, seal)
            body = Place(HEADER_BYTES, 0, zlib.crc32(b""))
            Record(0, plan.committed_bytes, body, seals.newest).write(file, b"")
            if durable:
                disk.fsync(file)
        return cls(path, durable=durable)

    def _recover(self) -> None:
        """Bring the file to the state of its last commit, durably."""
        record = read_newest_record(self._file)
        if os.fstat(self._file.fileno()).st_size < record.committed_bytes:
            raise DamagedError(f"the file is cut off before byte {record.committed_bytes}")
        # The record too, byte by byte the same: should its fsync have failed, the pages count as clean now
        # and no further fsync would write them. It has to be there before its changes are.
        record.write(self._file, pack_pages({p: bytearray(data) for p, data in record.pages.items()}))
        self._sync()
        self._apply(record.pages)
        self._sync()
        self._file.truncate(record.committed_bytes)
        self._sync()
        seals = Seals.read(self._file, record)
        self._stand_at(record.sequence, record.committed_bytes, seals)

    def _stand_at(self, sequence: int, committed_bytes: int, seals: Seals) -> None:
        self._sequence, self._size = sequence, committed_bytes
        self._known_headers = headers(self._file)
        self._base = SealedFile(self._file, seals, {})
        self._recovery_needed = False

    def _apply(self, pages: dict[int, bytes] | dict[int, bytearray]) -> None:
        for first, stop in page_runs(pages):
            data = b"".join(pages[page] for page in range(first, stop))
            disk.write_all(self._file, first * disk.PAGE_BYTES, data)

    def _sync(self) -> None:
        if self._durable:
            disk.fsync(self._file)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """The file, opened for changes that are kept if the block ends and undone if it raises.

        Where the disk fails in the last moment, the changes may have been kept although this raises: the next
        transaction finds them done or undone.

        Yields:
            A `Transaction`; nothing opened from its `h5` may be used after the block.

        Raises:
            OSError: the disk refused (its own error, not HDF5's), or the file is gone, replaced or damaged.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(f"'{self.path}' was replaced by another file")
        if self._recovery_needed:
            self._recover()
        self._check_headers()
        appender = Appender(self._file, self._syncer if self._durable else None, self._checksummer)
        image = OverlayFile(self._file, self._base, self._size, self._size, appender)
        self._recovery_needed = True
        transaction: Transaction | None = None
        try:
            transaction = Transaction(open_h5(image, "r+"), image, appender)
            yield transaction
            transaction.h5.close()
            image.check()
            self._commit(image, transaction.note, appender)
        except BaseException:
            image.discard_writes()
            if transaction is not None:
                with contextlib.suppress(Exception):
                    transaction.h5.close()
            with contextlib.suppress(Exception):
                appender.settle()
            with contextlib.suppress(OSError, ValueError):  # the next transaction will try again
                self._recover()
            image.check()  # HDF5's own error may be but a consequence of it
            raise

    def _check_headers(self) -> None:
        if headers(self._file) != self._known_headers:
            raise BlockingIOError(f"'{self.path}' was written by another process")

    def _commit(self, image: OverlayFile, note: bytes, appender: Appender) -> None:
        plan = image.plan_seal(note)
        committed_bytes = plan.committed_bytes
        self._file.truncate(committed_bytes)  # now, so that the second fsync need not save the file's size
        synced = run_beside(self._syncer, self._sync)
        try:
            seal, seals = image.make_seal(plan)  # while the disk is busy
        finally:
            wait([synced])
        appender.settle()
        synced.result()
        pages = {**image.pages, **pages_of(plan.offset, seal)}
        body = pack_pages(pages)
        sequence = self._sequence + 1
        inline = HEADER_BYTES + len(body) <= SLOT_BYTES
        offset = (sequence % 2) * SLOT_BYTES + HEADER_BYTES if inline else committed_bytes
        if not inline:
            disk.write_all(self._file, offset, body)
            self._sync()
        self._check_headers()
        record = Record(sequence, committed_bytes, Place(offset, len(body), zlib.crc32(body)), seals.newest)
        record.write(self._file, body)
        self._sync()
        # Committed. What fails from here on is made up for by the next transaction, or the next reader.
        self._stand_at(sequence, committed_bytes, seals)
        try:
            self._apply(pages)
            if not inline:
                self._sync()
        except OSError:
            self._recovery_needed = True

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._syncer.shutdown()
        self._checksummer.shutdown()
        self._file.close()

    def close_in_child(self) -> None:
        """Give up the lock in a forked process, in which there are no threads."""
        self._file.close()


class Snapshot:
    """A file as of its last commit, for reading while somebody may be writing.

    Args:
        path: a file made by `Journal.create`.
        strict: see `read_newest_record`.

    Raises:
        OSError: there is no such file, or it may not be read.
        NotSealedError: the file was not written by this package.
        DamagedError: the file is cut off, or its record or checksums are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        self._file = disk.open_file(path, "rb")
        self._strict = strict
        self._h5: h5py.File | None = None
        self._image: OverlayFile | None = None
        try:
            self.refresh()
        except BaseException:
            self._file.close()
            raise

    def refresh(self) -> None:
        """Move on to the last commit; what was opened from `h5` is of no use any more."""
        self._close_h5()
        while True:
            self._seen_headers = headers(self._file)
            self.record = read_newest_record(self._file, strict=self._strict)
            self.size = os.fstat(self._file.fileno()).st_size
            try:
                if self.size < self.record.committed_bytes:
                    raise DamagedError(f"it is cut off: {self.size} bytes of {self.record.committed_bytes}")
                self.seals = Seals.read(self._file, self.record)
                return
            except DamagedError:
                if self.is_current:
                    raise

    @property
    def h5(self) -> h5py.File:
        """The file, opened for reading; call `check` before believing what was read."""
        if self._h5 is None:
            base = SealedFile(self._file, self.seals, self.record.pages)
            self._image = OverlayFile(self._file, base, self.record.committed_bytes, None)
            self._h5 = open_h5(self._image, "r")
        return self._h5

    def check(self) -> None:
        """Raise what went wrong while `h5` was read; to be called before what was read is believed.

        Raises:
            DamagedError: bytes are not what was committed.
        """
        if self._image is not None:
            self._image.check()

    @property
    def is_current(self) -> bool:
        """Whether no commit happened since."""
        return headers(self._file) == self._seen_headers

    def _close_h5(self) -> None:
        if self._h5 is not None:
            with contextlib.suppress(Exception):
                self._h5.close()
            self._h5 = None

    def close(self) -> None:
        """Release the file. Closing twice is fine."""
        self._close_h5()
        self._file.close()


def _close_in_child() -> None:
    """Give up the locks that a forked process, a DataLoader worker for instance, has inherited."""
    for journal in list(_open_journals):
        journal.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
