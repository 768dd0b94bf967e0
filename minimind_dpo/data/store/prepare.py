"""Preference files to a token store, once: found again by fingerprint, built if it is not there.

The fingerprint covers the bytes of the files and their names, the tokenizer's rules (its content,
the template, the lengths) and the versions of the formats. Files are hashed anew at each start: a
GB takes under a second, while a remembered size and time can be wrong. Two processes that build at
once both build, and put the same file into its place. A damaged store is named in a warning and
built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from minimind_dpo.batch import PreferencePair
from minimind_dpo.data.options import DataOptions, check_data
from minimind_dpo.data.read.pairs import read_files
from minimind_dpo.data.read.problems import DataError, ProblemLog
from minimind_dpo.data.read.records import content_digest
from minimind_dpo.data.read.sources import DataFile, Files, resolve_files
from minimind_dpo.data.store.counts import ReportBuilder
from minimind_dpo.data.store.sealed import DamagedFileError
from minimind_dpo.data.store.token_store import FORMAT, StoreWriter, TokenStore
from minimind_dpo.data.tokenize.pair_tokenizer import Dropped, Encoded, PairTokenizer
from minimind_dpo.data.tokenize.rendering import as_answer, as_turns
from minimind_dpo.disk import remove_dead, workspace
from minimind_dpo.options.problem import Problem

READER = 3
"""Version of how files become pairs; raise it with every change that gives other pairs."""

_CHUNK = 64


def prepare_store(
    files: Files,
    pair_tokenizer: PairTokenizer,
    options: DataOptions,
    *,
    progress: bool = True,
) -> TokenStore:
    """Find or build the token store of some preference files.

    Args:
        files: A path, glob, hub data set or several; `sources` has the syntax.
        pair_tokenizer: The rules.
        options: Of them `cache_dir`, `columns`, `on_error` and `tokenize_workers` are read here.
        progress: Show a progress bar while tokenising.

    Raises:
        ConfigError: An option is out of its range.
        DataError: Files that cannot be used; problems, under `stop`; or no pair that is left.
    """
    check_data(options)
    resolved = resolve_files(files)
    columns = options.columns.named()
    fingerprint = _fingerprint(resolved, pair_tokenizer, columns)
    path = Path(options.cache_dir) / f"{fingerprint[:32]}.safetensors"
    remove_dead(path.parent)
    store = _open_sound(path)
    if store is not None and (options.on_error == "skip" or not _has_problems(store)):
        return store
    with workspace(path) as space, (space / "tokens").open("w+b") as tokens:
        builder = _Builder(StoreWriter(tokens), pair_tokenizer)
        workers = options.tokenize_workers or min(8, os.cpu_count() or 1)
        builder.run(resolved, columns, progress, workers)
        builder.finish(path, fingerprint, options.on_error)
    return TokenStore(path, verify=False)


def prompt_hash(pair: PreferencePair) -> int:
    """Stable 64-bit hash of a prompt's turns and tools, before any cut; text is a user's turn."""
    return _hash([list(as_turns(pair.prompt)), pair.tools])


def pair_hash(pair: PreferencePair) -> int:
    """Stable 64-bit hash of a pair's prompt, tools and both answers, before any cut."""
    answers = [as_answer(pair.chosen), as_answer(pair.rejected)]
    return _hash([list(as_turns(pair.prompt)), pair.tools, answers])


def _hash(content: Any) -> int:
    written = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(written.encode(), digest_size=8).digest(), "little")


def _fingerprint(
    files: list[DataFile], pair_tokenizer: PairTokenizer, columns: Mapping[str, str]
) -> str:
    parts = {
        "versions": [FORMAT, READER],
        "files": [[file.name, content_digest(file)] for file in files],
        "columns": columns,
        "rules": pair_tokenizer.fingerprint,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _has_problems(store: TokenStore) -> bool:
    return bool(store.report["skipped_lines"] or store.report["dropped"]["template"])


def _open_sound(path: Path) -> TokenStore | None:
    """The store in this file; None where there is none, or a damaged one, which is warned of."""
    try:
        return TokenStore(path)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        warnings.warn(f"damaged token store, built again: {error}", stacklevel=3)
        return None


class _Builder:
    """One build: reads, tokenises in threads, writes and counts, in the order of the lines."""

    def __init__(self, writer: StoreWriter, pair_tokenizer: PairTokenizer) -> None:
        self.writer = writer
        self.tokenizer = pair_tokenizer
        self.report = ReportBuilder()
        self.problems = ProblemLog()
        self.unused: list[Problem] = []

    def run(
        self, files: list[DataFile], columns: Mapping[str, str], progress: bool, workers: int
    ) -> None:
        """Tokenise all pairs."""
        with _progress_bar(sum(file.size for file in files), progress) as advance:
            pairs = read_files(files, columns, self._add_problem, self.report.files.append, advance)
            for pair, result in _in_threads(self.tokenizer, pairs, workers):
                self._add(pair, result)

    def _add_problem(self, problem: Problem) -> None:
        self.problems(problem)
        self.unused.append(problem)

    def _add(self, pair: PreferencePair, result: Encoded | Dropped) -> None:
        self.report.add(pair, result)
        if isinstance(result, Encoded):
            self.writer.add(result.pair, prompt_hash(pair), pair_hash(pair))
        elif result.kind == "template":
            self._add_problem(Problem(pair.source, result.reason))
        else:
            self.unused.append(Problem(pair.source, f"dropped: {result.reason}"))

    def finish(self, path: Path, fingerprint: str, on_error: str) -> None:
        """Complete the store, unless there are problems to stop at or no pair is left."""
        if on_error == "stop":
            self.problems.raise_if_any()
        if not len(self.writer):
            names = ", ".join(summary.name for summary in self.report.files)
            problems = self.unused or [Problem(names, "holds no pair")]
            raise DataError(problems, hint="No pair is left to train on.")
        report = self.report.build(self.writer.lengths(), self.tokenizer.options.lengths)
        self.writer.finish(path, fingerprint, report, list(map(str, self.unused)))


def _in_threads(
    pair_tokenizer: PairTokenizer, pairs: Iterable[PreferencePair], workers: int
) -> Iterator[tuple[PreferencePair, Encoded | Dropped]]:
    """Render pairs here, encode chunks of them in threads, in order.

    Encoding, most of the work, leaves Python's lock. Threads beat both processes (whose start
    costs more than the work of a usual file) and the tokenizer's own parallelism (which stands
    still while Python renders the next chunk). Rendering holds the lock, and only here, in the main
    thread, can a template that does not end be interrupted.
    """
    stream = iter(pairs)
    waiting: deque[tuple[list[PreferencePair], Future[list[Encoded | Dropped]]]] = deque()
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        while True:
            chunk = list(islice(stream, _CHUNK))
            if chunk:
                texts = pair_tokenizer.render(chunk)
                waiting.append((chunk, pool.submit(pair_tokenizer.encode, chunk, texts)))
            if not waiting:
                return
            if not chunk or len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)


_parallelism = threading.Lock()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Switch the tokenizer library's own threads off; once used, it complains of later forks."""
    name = "TOKENIZERS_PARALLELISM"
    with _parallelism:
        before = os.environ.get(name)
        os.environ[name] = "false"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@contextmanager
def _progress_bar(size: int, shown: bool) -> Iterator[Any]:
    """Bar over the bytes of the files; yields the function that advances it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not shown, transient=True) as bar:
        task = bar.add_task("Tokenising preference pairs", total=size or None)
        yield lambda count: bar.advance(task, count)
