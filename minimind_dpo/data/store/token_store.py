"""The token store: tokenised pairs in one file, mapped into memory.

<cache_dir>/<fingerprint>.safetensors
    tokens       int32 (T,), all ids, pair by pair: prompt, chosen, rejected
    lengths      int32 (n, 3)
    prompt_hash  uint64 (n,), pair_hash uint64 (n,)
    margins      float32 (n,), weights float32 (n,)
    sources      uint8 (n, width), UTF-8 of `dpo.jsonl:17`, zeros behind it
    header       fingerprint and data report
<cache_dir>/<fingerprint>.unused.txt      every problem and dropped pair, one a line
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.store.sealed import DamagedFileError, read_sealed, write_sealed
from minimind_dpo.disk import write_text

FORMAT = 4
"""Version of the layout on disk."""


class ReferenceRows(Protocol):
    """Where the reference's log-probs of a row come from."""

    def get(self, index: int) -> np.ndarray:
        """float32 (chosen length + rejected length,)."""


class TokenStore:
    """Read-only sequence of `TokenizedPair`; pickles as its path, so workers map the same file.

    Attributes:
        path: The file.
        fingerprint: Of data, tokenizer, template, lengths and rules.
        report: The data report, plain values.
        lengths: int32 (n, 3), tokens of prompt, chosen and rejected.
        prompt_hash: uint64 (n,), of the prompt's turns before any cut, whatever the tokenizer.
        pair_hash: uint64 (n,), of the prompt and both answers, likewise.
        margins: float32 (n,).
        weights: float32 (n,).
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        """Open a store.

        Args:
            path: The file.
            verify: Check every byte, not sizes alone.

        Raises:
            DamagedFileError: Naming the file and what is wrong with it.
            OSError: It is not there, or cannot be opened.
        """
        self.path = Path(path)
        arrays, about = read_sealed(self.path, verify)
        try:
            self.fingerprint: str = about["fingerprint"]
            self.report: dict[str, Any] = about["report"]
            self.lengths, self._tokens = arrays["lengths"], arrays["tokens"]
            self.prompt_hash, self.pair_hash = arrays["prompt_hash"], arrays["pair_hash"]
            self.margins, self.weights = arrays["margins"], arrays["weights"]
            self._sources = arrays["sources"]
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"{self.path}: is no token store ({error})") from error
        ends = np.cumsum(self.lengths.sum(axis=1, dtype=np.int64))
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        if self._starts[-1] != len(self._tokens):
            raise DamagedFileError(f"{self.path}: lengths and tokens disagree")
        self._reference: ReferenceRows | None = None

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
        # A copy: what is written to it must not reach the next reader of the row.
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

    def prompt_ids(self, index: int) -> np.ndarray:
        """int32 (length,) tokens of a pair's prompt, whether the reference has scored it or not."""
        start = self._starts[index]
        return np.array(self._tokens[start : start + self.lengths[index, 0]], np.int32)

    def source(self, index: int) -> str:
        """Where a pair was read, `dpo.jsonl:17`."""
        return self._sources[index].tobytes().rstrip(b"\0").decode()

    @property
    def unused(self) -> Path:
        """File that names every line that is not in the store, and why."""
        return unused_file(self.path)

    def with_reference(self, reference: ReferenceRows) -> TokenStore:
        """The same store, whose pairs carry the reference's log-probs.

        Reading a pair that `reference` lacks raises LookupError.
        """
        store = copy.copy(self)
        store._reference = reference
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self._reference)


def _reopen(path: str, reference: ReferenceRows | None) -> TokenStore:
    store = TokenStore(path, verify=False)
    return store if reference is None else store.with_reference(reference)


def unused_file(store: Path) -> Path:
    """The list that lies beside a store."""
    return store.with_suffix(".unused.txt")


class StoreWriter:
    """Collects the rows of a store.

    Args:
        tokens: An open file for the ids, which may be more than memory holds.
    """

    def __init__(self, tokens: IO[bytes]) -> None:
        self._tokens = tokens
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
        self._sources.append(pair.source.encode())

    def lengths(self) -> np.ndarray:
        """int32 (n, 3), so far."""
        return np.array(self._lengths, np.int32).reshape(-1, 3)

    def finish(
        self, path: Path, fingerprint: str, report: dict[str, Any], unused: list[str]
    ) -> None:
        """Put the store into its place, where another process may have put the same one."""
        self._tokens.flush()
        sources = np.array(self._sources, "S")
        arrays = {
            "tokens": np.memmap(self._tokens.name, np.int32, "r"),
            "lengths": self.lengths(),
            "prompt_hash": np.array(self._prompt_hashes, np.uint64),
            "pair_hash": np.array(self._pair_hashes, np.uint64),
            "margins": np.array(self._margins, np.float32),
            "weights": np.array(self._weights, np.float32),
            "sources": sources.view(np.uint8).reshape(len(sources), -1),
        }
        write_text(unused_file(path), "".join(f"{line}\n" for line in unused))
        write_sealed(path, arrays, {"fingerprint": fingerprint, "report": report})
