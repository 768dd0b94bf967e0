"""The token store: tokenised pairs on disk, read through memory maps.

A folder `<cache_dir>/<fingerprint>` with

    tokens.i32     all ids, pair by pair: prompt, chosen, rejected
    lengths.npy    int32 (n, 3)
    prompt_hash.npy, pair_hash.npy uint64 (n,), margins.npy, weights.npy float32 (n,)
    sources.npy    UTF-8 bytes (n,), `dpo.jsonl:17`
    unused.txt     every problem and dropped pair, one a line
    meta.json      fingerprint, data report, size and SHA-256 of each file, checksum of itself

It is written into a temporary folder beside its place and renamed when it is complete and on disk,
so a folder of that name is either whole or damaged later, and damage is found when it is opened.
Nothing is pickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.disk import sha256, sync

FORMAT = 3
"""Version of the layout on disk."""

_ARRAYS = {
    "lengths": np.int32,
    "prompt_hash": np.uint64,
    "pair_hash": np.uint64,
    "margins": np.float32,
    "weights": np.float32,
}
_META, _TOKENS, _SOURCES, UNUSED = "meta.json", "tokens.i32", "sources.npy", "unused.txt"


class DamagedStoreError(ValueError):
    """A token store that is not what was written; it can be built again."""


class ReferenceRows(Protocol):
    """Where the reference's log-probs of a row come from."""

    def get(self, index: int) -> np.ndarray:
        """float32 (chosen length + rejected length,)."""


class TokenStore:
    """Read-only sequence of `TokenizedPair`; pickles as its path, so workers map the same file.

    Attributes:
        folder: Where it is.
        fingerprint: Of data, tokenizer, template, lengths and rules.
        report: The data report, plain values.
        lengths: int32 (n, 3), tokens of prompt, chosen and rejected.
        prompt_hash: uint64 (n,), of the prompt's turns before any cut, whatever the tokenizer.
        pair_hash: uint64 (n,), of the prompt and both answers, likewise.
        margins: float32 (n,).
        weights: float32 (n,).
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        """Open a store.

        Args:
            folder: Its folder.
            verify: Check every byte, not sizes alone.

        Raises:
            DamagedStoreError: Naming the file and what is wrong with it.
        """
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        for name, expected in meta["files"].items():
            _check_file(self.folder / name, expected, verify)
        self.fingerprint: str = meta["fingerprint"]
        self.report: dict[str, Any] = meta["report"]
        self.lengths = self._load("lengths.npy")
        self.prompt_hash = self._load("prompt_hash.npy")
        self.pair_hash = self._load("pair_hash.npy")
        self.margins = self._load("margins.npy")
        self.weights = self._load("weights.npy")
        self._sources = self._load(_SOURCES)
        self._tokens = np.memmap(self.folder / _TOKENS, dtype="<i4", mode="r")
        ends = np.cumsum(self.lengths.sum(axis=1, dtype=np.int64))
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        if self._starts[-1] != len(self._tokens):
            raise DamagedStoreError(f"{self.folder}: lengths and tokens disagree")
        self._reference: ReferenceRows | None = None

    def _load(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedStoreError(f"{self.folder / name}: {error}") from error

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> TokenizedPair:
        row = int(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"pair {row} of a store of {len(self)} pairs")
        row %= len(self)
        prompt, chosen, rejected = self.lengths[row].tolist()
        # A copy, since torch warns of arrays that cannot be written to.
        ids = np.array(self._tokens[self._starts[row] : self._starts[row + 1]], np.int32)
        return TokenizedPair(
            prompt_ids=ids[:prompt],
            chosen_ids=ids[prompt : prompt + chosen],
            rejected_ids=ids[prompt + chosen : prompt + chosen + rejected],
            index=row,
            source=self.source(row),
            margin=float(self.margins[row]),
            weight=float(self.weights[row]),
            reference_logps=None if self._reference is None else self._reference.get(row),
        )

    def source(self, index: int) -> str:
        """Where a pair was read, `dpo.jsonl:17`."""
        return bytes(self._sources[index]).decode()

    @property
    def sources(self) -> list[str]:
        """Where each pair was read."""
        return [self.source(index) for index in range(len(self))]

    @property
    def unused(self) -> Path:
        """File that names every line that is not in the store, and why."""
        return self.folder / UNUSED

    def with_reference(self, reference: ReferenceRows) -> TokenStore:
        """The same store, whose pairs carry the reference's log-probs.

        Reading a pair that `reference` lacks raises LookupError.
        """
        store = copy.copy(self)
        store._reference = reference
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.folder), self._reference)


def _reopen(folder: str, reference: ReferenceRows | None) -> TokenStore:
    store = TokenStore(folder, verify=False)
    return store if reference is None else store.with_reference(reference)


class StoreWriter:
    """Writes a store into a folder; nothing is a store until `finish`.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokens = open(folder / _TOKENS, "wb")  # noqa: SIM115 - closed by finish and close
        self._lengths = array("i")
        self._prompt_hashes, self._pair_hashes = array("Q"), array("Q")
        self._margins, self._weights = array("f"), array("f")
        self._sources: list[bytes] = []

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, pair: TokenizedPair, prompt_hash: int, pair_hash: int) -> None:
        """Append a pair."""
        parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        self._tokens.write(np.concatenate(parts).astype("<i4").tobytes())
        self._lengths.extend(map(len, parts))
        self._prompt_hashes.append(prompt_hash)
        self._pair_hashes.append(pair_hash)
        self._margins.append(pair.margin)
        self._weights.append(pair.weight)
        self._sources.append(pair.source.encode("utf-8", "backslashreplace"))

    def lengths(self) -> np.ndarray:
        """int32 (n, 3), so far."""
        return np.array(self._lengths, np.int32).reshape(-1, 3)

    def finish(self, fingerprint: str, report: dict[str, Any], unused: list[str]) -> None:
        """Write what is left, with checksums, and wait until all of it is on disk."""
        self._tokens.close()
        hashes = (self._prompt_hashes, self._pair_hashes)
        columns = (self.lengths(), *hashes, self._margins, self._weights)
        for (name, kind), values in zip(_ARRAYS.items(), columns, strict=True):
            np.save(self.folder / f"{name}.npy", np.array(values, kind), allow_pickle=False)
        np.save(self.folder / _SOURCES, np.array(self._sources, "S"), allow_pickle=False)
        lines = "".join(f"{line}\n" for line in unused)
        (self.folder / UNUSED).write_text(lines, encoding="utf-8", errors="backslashreplace")
        files = {}
        for path in sorted(self.folder.iterdir()):
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        meta = {"format": FORMAT, "fingerprint": fingerprint, "report": report, "files": files}
        written = json.dumps({**meta, "checksum": _checksum(meta)}, indent=1, ensure_ascii=False)
        (self.folder / _META).write_text(written, encoding="utf-8")
        sync(self.folder / _META)
        sync(self.folder)

    def close(self) -> None:
        """Let go of the files of a store that will not be finished."""
        self._tokens.close()


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / _META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        checksum = meta.pop("checksum")
        sound = checksum == _checksum(meta) and meta["format"] == FORMAT
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedStoreError(f"{path}: {type(error).__name__}: {error}") from error
    if not sound:
        raise DamagedStoreError(f"{path}: its content is not what was written")
    return meta


def _check_file(path: Path, expected: dict[str, Any], verify: bool) -> None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedStoreError(f"{path}: has {size:,} bytes, not {expected['bytes']:,}")
        if verify and sha256(path) != expected["sha256"]:
            raise DamagedStoreError(f"{path}: its content is not what was written")
    except OSError as error:
        raise DamagedStoreError(f"{path}: {error.strerror}") from error


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
