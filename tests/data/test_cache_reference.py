"""Reference log-probs beside the store: shared, completed, never trusted when damaged."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.store import reference_logps
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.store.reference_logps import ReferenceCache
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.disk import workspace


@pytest.fixture
def store(tokenizer, write, tmp_path) -> TokenStore:
    lines = [{"prompt": f"q{n}", "chosen": "x" * (n + 1), "rejected": "y"} for n in range(6)]
    rules = PairTokenizer(tokenizer)
    options = DataOptions(cache_dir=str(tmp_path / "cache"))
    return prepare_store(write("d.jsonl", *lines), rules, options, progress=False)


def rows(store: TokenStore, indices: list[int]) -> list[np.ndarray]:
    counts = store.lengths[:, 1:].sum(axis=1)
    return [-np.arange(counts[i], dtype=np.float32) - i / 7 for i in indices]


def only_file(cache: ReferenceCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def written(store: TokenStore, indices: list[int], key: str = "weights") -> Path:
    """A segment of these rows."""
    before = set(ReferenceCache(store, key).folder.glob("*"))
    with ReferenceCache(store, key) as cache:
        cache.write(indices, rows(store, indices))
    (path,) = set(cache.folder.iterdir()) - before
    return path


def test_a_prompt_can_be_read_of_a_pair_that_the_reference_has_not_scored(store) -> None:
    """As sampled answers do where `trainer.limit_val_batches` leaves pairs out."""
    plain = [pair.prompt_ids.tolist() for pair in store]
    scored = store.with_reference(ReferenceCache(store, "weights"))
    with pytest.raises(LookupError):
        scored[3]
    assert [scored.prompt_ids(row).tolist() for row in range(6)] == plain


def test_rows_come_back_at_once_and_after_reopening(store) -> None:
    cache = ReferenceCache(store, "weights")
    assert cache.missing(range(6)).tolist() == [0, 1, 2, 3, 4, 5]
    assert not cache.folder.exists()
    cache.write([4, 1], rows(store, [4, 1]))
    assert cache.get(4).tolist() == rows(store, [4])[0].tolist()
    cache.write([2], rows(store, [2]))
    assert cache.missing([5, 4, 2, 0, 1]).tolist() == [5, 0]
    cache.flush()
    for reader in (cache, ReferenceCache(store, "weights"), pickle.loads(pickle.dumps(cache))):
        assert reader.missing([5, 4, 2, 0, 1]).tolist() == [5, 0]
        for index, expected in zip([4, 1, 2], rows(store, [4, 1, 2]), strict=True):
            values = reader.get(index)
            assert values.dtype == np.float32
            assert values.flags.writeable
            assert values.tolist() == expected.tolist()
    assert len(cache) == 3


def test_rows_wait_for_a_segment_no_longer_than_half_a_minute_nor_16_mb(store, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(reference_logps.time, "monotonic", lambda: clock[0])
    cache = ReferenceCache(store, "weights")
    cache.write([0], rows(store, [0]))
    clock[0] += 29
    cache.write([1], rows(store, [1]))
    assert len(ReferenceCache(store, "weights")) == 0
    clock[0] += 2
    cache.write([2], rows(store, [2]))
    assert len(ReferenceCache(store, "weights")) == 3
    monkeypatch.setattr(reference_logps, "_MOST_BYTES", 8)
    cache.write([3], rows(store, [3]))
    assert len(ReferenceCache(store, "weights")) == 4


def test_what_was_scored_when_an_error_came_is_kept(store) -> None:
    with pytest.raises(KeyboardInterrupt), ReferenceCache(store, "weights") as cache:  # noqa: PT012
        cache.write([0, 1], rows(store, [0, 1]))
        raise KeyboardInterrupt
    assert ReferenceCache(store, "weights").missing(range(6)).tolist() == [2, 3, 4, 5]


def test_another_reference_or_store_sees_nothing(store, tokenizer, write, tmp_path) -> None:
    written(store, [0])
    assert len(ReferenceCache(store, "weights")) == 1
    assert len(ReferenceCache(store, "other weights")) == 0
    rules = PairTokenizer(tokenizer)
    line = {"prompt": "q0", "chosen": "x", "rejected": "y"}
    options = DataOptions(cache_dir=str(tmp_path / "cache"))
    other = prepare_store(write("e.jsonl", line), rules, options, progress=False)
    assert len(ReferenceCache(other, "weights")) == 0


def test_several_writers_do_not_touch_each_other(store) -> None:
    ranks = [ReferenceCache(store, "weights") for _ in range(3)]
    for rank, cache in enumerate(ranks):
        own = list(range(rank, 6, 3))
        cache.write(own, rows(store, own))
    for cache in ranks:
        cache.flush()
        assert len(cache) == 2
    ranks = [ReferenceCache(store, "weights") for _ in ranks]
    for cache in ranks:
        assert cache.missing(range(6)).tolist() == []
        assert [cache.get(i).tolist() for i in range(6)] == [
            r.tolist() for r in rows(store, [*range(6)])
        ]
        cache.write([0], rows(store, [0]))
    assert len(list(ranks[0].folder.iterdir())) == 3
    for cache in ranks:
        cache.flush()
    assert len(ReferenceCache(store, "weights")) == 6


def test_all_readers_take_a_row_written_twice_from_the_same_file(store) -> None:
    for shift in (0.0, 1.0):
        with ReferenceCache(store, "weights") as cache:
            cache.write([0], [rows(store, [0])[0] - shift])
    first, second = (ReferenceCache(store, "weights") for _ in range(2))
    assert first.get(0).tolist() == second.get(0).tolist()


def test_a_damaged_segment_alone_is_deleted_and_its_rows_computed_again(store) -> None:
    written(store, [0, 2])
    path = written(store, [1, 3])
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=f"computed again: .*{path.name}: its content is not"):
        reader = ReferenceCache(store, "weights")
    assert not path.exists()
    assert reader.missing([0, 1, 2, 3]).tolist() == [1, 3]
    with pytest.raises(LookupError, match="pair 1 has no reference log-probs"):
        reader.get(1)
    reader.write([1, 3], rows(store, [1, 3]))
    assert reader.get(1).tolist() == rows(store, [1])[0].tolist()
    reader.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ReferenceCache(store, "weights").missing(range(4)).tolist() == []


def test_a_segment_cut_anywhere_is_found(store) -> None:
    path = written(store, [0, 3])
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.warns(UserWarning, match="damaged reference log-probs, computed again"):
            assert len(ReferenceCache(store, "weights")) == 0


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 200])
def test_a_file_that_is_no_segment_is_named_and_not_used(store, content) -> None:
    path = written(store, [0])
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name):
        assert len(ReferenceCache(store, "weights")) == 0


def test_a_segment_of_another_reference_is_not_used(store) -> None:
    other = written(store, [0], key="other weights")
    folder = ReferenceCache(store, "weights").folder
    folder.mkdir()
    other.rename(folder / other.name)
    with pytest.warns(UserWarning, match="belongs to other data or another reference"):
        assert len(ReferenceCache(store, "weights")) == 0


def test_any_flipped_bit_is_found(store) -> None:
    path = written(store, [0, 1])
    data = path.read_bytes()
    good = {i: values.tolist() for i, values in enumerate(rows(store, [0, 1]))}
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reader = ReferenceCache(store, "weights")
        # Beside the arrays and what is said of them a file holds spaces that nobody reads.
        if not caught:
            assert [reader.get(i).tolist() for i in (0, 1)] == [good[0], good[1]]
        else:
            assert reader.missing([0, 1]).tolist() == [0, 1]


def test_two_processes_and_a_killed_one_leave_whole_segments_alone(store) -> None:
    killed = ReferenceCache(store, "weights")
    killed.write([0, 1], rows(store, [0, 1]))
    with workspace(killed.folder / "building") as space:  # as a kill would leave it
        shutil.copytree(space, killed.folder / ".a.safetensors.12345678.tmp")
    written(store, [2])
    assert [path.suffix for path in killed.folder.iterdir()] == [".safetensors"]
    assert ReferenceCache(store, "weights").missing(range(6)).tolist() == [0, 1, 3, 4, 5]


def test_wrong_shapes_and_values_are_refused(store) -> None:
    cache = ReferenceCache(store, "weights")
    with pytest.raises(ValueError, match=r"pair 0: shape \(1,\), not \(\d+,\)"):
        cache.write([0], [np.zeros(1, np.float32)])
    bad = rows(store, [0])
    bad[0][0] = np.nan
    with pytest.raises(ValueError, match="not all finite"):
        cache.write([0], bad)
    assert not cache.folder.exists()


def test_pairs_of_the_store_carry_their_rows(store) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([2], rows(store, [2]))
    cache.flush()
    attached = store.with_reference(cache)
    for view in (attached, pickle.loads(pickle.dumps(attached))):
        values = view[2].reference_logps
        assert values is not None
        assert values.tolist() == rows(store, [2])[0].tolist()
        with pytest.raises(LookupError):
            view[0]
    assert store[2].reference_logps is None
