"""Log-probs of the frozen reference, kept beside the token store, row by row.

A folder of record files. Each writing process has a file of its own and only appends to it:

    file     magic, key of store and reference (32 bytes)
    record   magic, row, count, CRC-32 of the values, CRC-32 of these four; then float32 values

So any number of ranks and machines write at once without touching each other's bytes (a shared
memory map would write back whole pages, neighbours' rows included, on a network file system), a
process that dies leaves whole records and at most one torn end, and nothing has to be merged. A
row counts as present only if its checksums hold; a damaged one is missing, and so computed again.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.disk import sync

_FILE_MAGIC, _MAGIC = b"DPOLOGP1", 0x4C4F4750
_FILE_HEADER = len(_FILE_MAGIC) + 32
_RECORD = struct.Struct("<5I")


class ReferenceCache:
    """Reads and writes the reference's token log-probs of a store's pairs.

    Args:
        store: The pairs.
        reference_fingerprint: What the values depend on besides the pairs: the reference's
            weights, its precision, anything that changes its log-probs.

    A row's values are float32 (chosen length + rejected length,), in nats, chosen first.
    """

    def __init__(self, store: TokenStore, reference_fingerprint: str) -> None:
        key = hashlib.sha256(f"{store.fingerprint}\0{reference_fingerprint}".encode()).digest()
        folder = store.folder.with_name(f"{store.folder.name}.reference-{key.hex()[:16]}")
        counts = store.lengths[:, 1:].sum(axis=1, dtype=np.int64)
        self._open(folder, key, counts, verify=True)

    def _open(self, folder: Path, key: bytes, counts: np.ndarray, verify: bool) -> None:
        self.folder = folder
        self._key = key
        self._counts = counts
        self._verify = verify
        self._own: IO[bytes] | None = None
        self._own_file = -1
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.folder), self._key, self._counts)

    def __len__(self) -> int:
        """Rows that are present."""
        return int((self._file_of >= 0).sum())

    def refresh(self) -> None:
        """Look again at what all processes have written.

        Where two wrote the same row, all readers take the one of the file whose name sorts first.
        """
        self._files: list[Path] = sorted(self.folder.glob("*.logps"))
        self._maps: dict[int, np.ndarray] = {}
        self._file_of = np.full(len(self._counts), -1, np.int32)
        self._offset_of = np.zeros(len(self._counts), np.int64)
        own = None if self._own is None else Path(self._own.name)
        for number, path in enumerate(self._files):
            self._scan(number, path)
            if path == own:
                self._own_file = number

    def _scan(self, number: int, path: Path) -> None:
        """Note which rows a file holds; warn of bytes that are not what was written."""
        data = _map_bytes(path)
        if bytes(data[:_FILE_HEADER]) != _FILE_MAGIC + self._key:
            warnings.warn(f"{path}: damaged or foreign; its rows are computed again", stacklevel=4)
            return
        position, damaged = _FILE_HEADER, 0
        while position + _RECORD.size <= len(data):
            header = bytes(data[position : position + _RECORD.size])
            magic, row, count, values_sum, header_sum = _RECORD.unpack(header)
            if magic != _MAGIC or zlib.crc32(header[:-4]) != header_sum:
                break
            start, end = position + _RECORD.size, position + _RECORD.size + 4 * count
            if end > len(data):
                break
            position = end
            known = row < len(self._counts) and count == self._counts[row]
            if not known or (self._verify and zlib.crc32(data[start:end].data) != values_sum):
                damaged += 1
            elif self._file_of[row] < 0:
                self._file_of[row], self._offset_of[row] = number, start
        lost = len(data) - position
        if damaged or lost:
            rows = f"{damaged} damaged rows" if damaged else ""
            rest = f"{lost} bytes that are no whole record" if lost else ""
            found = " and ".join(filter(None, (rows, rest)))
            warnings.warn(f"{path}: {found}; such rows are computed again", stacklevel=4)

    def missing(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `indices`, int64 and in their order, whose values are not present."""
        rows = np.asarray(indices, np.int64)
        return rows[self._file_of[rows] < 0]

    def get(self, index: int) -> np.ndarray:
        """Values of one row.

        Raises:
            LookupError: If they are not present.
        """
        number = int(self._file_of[index])
        if number < 0:
            raise LookupError(
                f"pair {index} has no reference log-probs in {self.folder}; compute what "
                "ReferenceCache.missing names before reading"
            )
        start = int(self._offset_of[index])
        end = start + 4 * int(self._counts[index])
        data = self._maps.get(number)
        if data is None or len(data) < end:
            data = self._maps[number] = _map_bytes(self._files[number])
        # A copy, since torch warns of arrays that cannot be written to.
        return np.array(data[start:end]).view("<f4").astype(np.float32, copy=False)

    def write(self, indices: Sequence[int] | np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Append rows; they are on disk for good after `flush`.

        Raises:
            ValueError: If a row has the wrong length or a value that is not finite.
        """
        rows = np.asarray(indices, np.int64).tolist()
        blobs, offsets = [], []
        size = self._own_size()
        for row, logps in zip(rows, values, strict=True):
            flat = np.ascontiguousarray(logps, "<f4")
            if flat.shape != (self._counts[row],):
                raise ValueError(f"pair {row}: shape {flat.shape}, not ({self._counts[row]},)")
            if not np.isfinite(flat).all():
                raise ValueError(f"pair {row}: the reference's log-probs are not all finite")
            payload = flat.tobytes()
            header = struct.pack("<4I", _MAGIC, row, len(flat), zlib.crc32(payload))
            header += struct.pack("<I", zlib.crc32(header))
            offsets.append(size + len(header))
            size += len(header) + len(payload)
            blobs += [header, payload]
        if not rows:
            return
        stream = self._writer()
        stream.write(b"".join(blobs))
        self._file_of[rows], self._offset_of[rows] = self._own_file, offsets

    def flush(self) -> None:
        """Wait until everything written by this process is on disk."""
        if self._own is not None:
            sync(Path(self._own.name))
            sync(self.folder)

    def close(self) -> None:
        """Flush and close this process's file."""
        self.flush()
        if self._own is not None:
            self._own.close()
            self._own = None

    def __del__(self) -> None:
        if getattr(self, "_own", None) is not None:
            self._own.close()  # type: ignore[union-attr]

    def _own_size(self) -> int:
        return _FILE_HEADER if self._own is None else Path(self._own.name).stat().st_size

    def _writer(self) -> IO[bytes]:
        """This process's own file, made when it first writes."""
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{uuid.uuid4().hex}.logps"
            self._own = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close
            self._own.write(_FILE_MAGIC + self._key)
            self._files.append(path)
            self._own_file = len(self._files) - 1
        return self._own


def _map_bytes(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r")


def _reopen(folder: str, key: bytes, counts: np.ndarray) -> ReferenceCache:
    cache = ReferenceCache.__new__(ReferenceCache)
    cache._open(Path(folder), key, counts, verify=False)
    return cache
