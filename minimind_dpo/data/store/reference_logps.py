"""Log-probs of the frozen reference, kept beside the token store, row by row.

A folder of segments, each a file that is renamed into place when it is whole:

    rows     int64 (k,), rows of the store
    logps    float32 (sum of their scored tokens,), row after row, chosen before rejected
    header   the key of store and reference

So any number of ranks and machines write at once, a process that dies loses what it had not yet
put into a segment (half a minute), and nothing has to be merged. A segment that is damaged is
deleted, and its rows are computed again. Of a row that two processes wrote, all readers take the
one in the file whose name sorts first.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from minimind_dpo.data.store.sealed import DamagedFileError, read_sealed, write_sealed
from minimind_dpo.data.store.token_store import TokenStore

_MOST_BYTES: Final = 1 << 24
_MOST_SECONDS: Final = 30.0
"""What a process that is killed loses at most."""


class ReferenceCache:
    """Reads and writes the reference's token log-probs of a store's pairs.

    Args:
        store: The pairs.
        reference_fingerprint: What the values depend on besides the pairs: the reference's
            weights, its precision, anything that changes its log-probs.

    A row's values are float32 (chosen length + rejected length,), in nats, chosen first.
    """

    def __init__(self, store: TokenStore, reference_fingerprint: str) -> None:
        key = hashlib.sha256(f"{store.fingerprint}\0{reference_fingerprint}".encode()).hexdigest()
        folder = store.path.with_name(f"{store.path.stem}.reference-{key[:16]}")
        counts = store.lengths[:, 1:].sum(axis=1, dtype=np.int64)
        self._open(folder, key, counts, verify=True)

    def _open(self, folder: Path, key: str, counts: np.ndarray, verify: bool) -> None:
        self.folder = folder
        self._key = key
        self._counts = counts
        self._waiting: dict[int, np.ndarray] = {}
        self._waiting_bytes, self._since = 0, 0.0
        self._logps: list[np.ndarray] = []
        self._segment_of = np.full(len(counts), -1, np.int32)
        self._start_of = np.zeros(len(counts), np.int64)
        for path in sorted(folder.glob("*.safetensors")):
            self._add(path, verify)

    def __reduce__(self) -> tuple[Any, ...]:
        self.flush()
        return _reopen, (str(self.folder), self._key, self._counts)

    def __len__(self) -> int:
        """Rows that are present."""
        return len(self._counts) - len(self.missing(np.arange(len(self._counts))))

    def _add(self, path: Path, verify: bool) -> None:
        """Note which rows a segment holds; delete it where it is not what was written."""
        try:
            arrays, about = read_sealed(path, verify)
            rows, logps = arrays["rows"], arrays["logps"]
            ends = np.cumsum(self._counts[rows])
            if about["key"] != self._key or ends[-1] != len(logps):
                raise DamagedFileError(f"{path}: belongs to other data or another reference")
        except FileNotFoundError:
            return  # another process has just deleted it
        except (DamagedFileError, KeyError, IndexError, TypeError) as error:
            message = f"damaged reference log-probs, computed again: {error}"
            warnings.warn(message, stacklevel=4)
            with contextlib.suppress(OSError):
                path.unlink()
            return
        fresh = self._segment_of[rows] < 0
        self._segment_of[rows[fresh]] = len(self._logps)
        self._start_of[rows[fresh]] = (ends - self._counts[rows])[fresh]
        self._logps.append(logps)

    def missing(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `indices`, int64 and in their order, whose values are not present."""
        rows = np.asarray(indices, np.int64)
        absent = self._segment_of[rows] < 0
        return rows[absent & ~np.isin(rows, list(self._waiting))]

    def get(self, index: int) -> np.ndarray:
        """Values of one row.

        Raises:
            LookupError: If they are not present.
        """
        segment = int(self._segment_of[index])
        if segment >= 0:
            start = int(self._start_of[index])
            values = self._logps[segment][start : start + int(self._counts[index])]
        elif index in self._waiting:
            values = self._waiting[index]
        else:
            raise LookupError(
                f"pair {index} has no reference log-probs in {self.folder}; compute what "
                "ReferenceCache.missing names before reading"
            )
        # A copy: what is written to it must not reach the next reader of the row.
        return np.array(values, np.float32)

    def write(self, indices: Sequence[int] | np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Add rows; they are on disk for good after `flush`.

        Raises:
            ValueError: If a row has the wrong length or a value that is not finite.
        """
        rows = np.asarray(indices, np.int64).tolist()
        fresh = {}
        for row, logps in zip(rows, values, strict=True):
            flat = np.array(logps, np.float32)
            if flat.shape != (self._counts[row],):
                raise ValueError(f"pair {row}: shape {flat.shape}, not ({self._counts[row]},)")
            if not np.isfinite(flat).all():
                raise ValueError(f"pair {row}: the reference's log-probs are not all finite")
            fresh[row] = flat
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting |= fresh
        self._waiting_bytes += sum(flat.nbytes for flat in fresh.values())
        aged = time.monotonic() - self._since > _MOST_SECONDS
        if aged or self._waiting_bytes > _MOST_BYTES:
            self.flush()

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Put everything written by this process on disk, as a segment."""
        if not self._waiting:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        rows = np.array(sorted(self._waiting), np.int64)
        logps = np.concatenate([self._waiting[row] for row in rows.tolist()])
        write_sealed(path, {"rows": rows, "logps": logps}, {"key": self._key})
        self._waiting, self._waiting_bytes = {}, 0
        self._add(path, verify=False)


def _reopen(folder: str, key: str, counts: np.ndarray) -> ReferenceCache:
    cache = ReferenceCache.__new__(ReferenceCache)
    cache._open(Path(folder), key, counts, verify=False)
    return cache
