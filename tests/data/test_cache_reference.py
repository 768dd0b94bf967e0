"""Reference log-probs beside the store: shared, completed, never trusted when damaged."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from minimind_dpo.data.store.prepare import ReferenceCache, TokenStore, prepare_store
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer

HEADER, RECORD = 40, 20


@pytest.fixture
def store(tokenizer, write, tmp_path) -> TokenStore:
    lines = [{"prompt": f"q{n}", "chosen": "x" * (n + 1), "rejected": "y"} for n in range(6)]
    rules = PairTokenizer(tokenizer)
    return prepare_store(write("d.jsonl", *lines), rules, tmp_path / "cache", progress=False)


def rows(store: TokenStore, indices: list[int]) -> list[np.ndarray]:
    counts = store.lengths[:, 1:].sum(axis=1)
    return [-np.arange(counts[i], dtype=np.float32) - i / 7 for i in indices]


def only_file(cache: ReferenceCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_rows_come_back_at_once_and_after_reopening(store) -> None:
    cache = ReferenceCache(store, "weights")
    assert cache.missing(range(6)).tolist() == [0, 1, 2, 3, 4, 5]
    assert not cache.folder.exists()
    cache.write([4, 1], rows(store, [4, 1]))
    cache.write([2], rows(store, [2]))
    for reader in (cache, ReferenceCache(store, "weights"), pickle.loads(pickle.dumps(cache))):
        assert reader.missing([5, 4, 2, 0, 1]).tolist() == [5, 0]
        for index, expected in zip([4, 1, 2], rows(store, [4, 1, 2]), strict=True):
            values = reader.get(index)
            assert values.dtype == np.float32
            assert values.flags.writeable
            assert values.tolist() == expected.tolist()
    cache.close()
    assert len(cache) == 3


def test_another_reference_or_store_sees_nothing(store, tokenizer, write, tmp_path) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([0], rows(store, [0]))
    assert len(ReferenceCache(store, "other weights")) == 0
    rules = PairTokenizer(tokenizer)
    line = {"prompt": "q0", "chosen": "x", "rejected": "y"}
    other = prepare_store(write("e.jsonl", line), rules, tmp_path / "cache", progress=False)
    assert len(ReferenceCache(other, "weights")) == 0


def test_several_writers_do_not_touch_each_other(store) -> None:
    ranks = [ReferenceCache(store, "weights") for _ in range(3)]
    for rank, cache in enumerate(ranks):
        own = list(range(rank, 6, 3))
        cache.write(own, rows(store, own))
    for cache in ranks:
        cache.flush()
        assert len(cache) == 2
        cache.refresh()
        assert cache.missing(range(6)).tolist() == []
        assert [cache.get(i).tolist() for i in range(6)] == [
            r.tolist() for r in rows(store, [*range(6)])
        ]
        cache.write([0], rows(store, [0]))
    assert len(list(ranks[0].folder.iterdir())) == 3


def test_all_readers_take_a_row_written_twice_from_the_same_file(store) -> None:
    for shift in (0.0, 1.0):
        ReferenceCache(store, "weights").write([0], [rows(store, [0])[0] - shift])
    first, second = (ReferenceCache(store, "weights") for _ in range(2))
    assert first.get(0).tolist() == second.get(0).tolist()


def test_a_damaged_row_alone_is_computed_again(store) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([0, 1, 2], rows(store, [0, 1, 2]))
    cache.close()
    path = only_file(cache)
    data = bytearray(path.read_bytes())
    first = RECORD + 4 * int(store.lengths[0, 1:].sum())
    data[HEADER + first + RECORD + 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="1 damaged rows; such rows are computed again"):
        reader = ReferenceCache(store, "weights")
    assert reader.missing([0, 1, 2]).tolist() == [1]
    with pytest.raises(LookupError, match="pair 1 has no reference log-probs"):
        reader.get(1)
    reader.write([1], rows(store, [1]))
    assert reader.get(1).tolist() == rows(store, [1])[0].tolist()
    with pytest.warns(UserWarning, match="damaged"):
        assert ReferenceCache(store, "weights").missing([0, 1, 2]).tolist() == []


@pytest.mark.parametrize("lost", range(1, 30))
def test_a_torn_end_costs_the_last_row_alone(store, lost) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([0, 3], rows(store, [0, 3]))
    cache.close()
    path = only_file(cache)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.warns(UserWarning, match="no whole record"):
        reader = ReferenceCache(store, "weights")
    assert reader.missing(range(6)).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 200])
def test_a_file_that_is_no_cache_is_named_and_left_out(store, content) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([0], rows(store, [0]))
    cache.close()
    only_file(cache).write_bytes(content)
    with pytest.warns(UserWarning, match="damaged or foreign"):
        assert len(ReferenceCache(store, "weights")) == 0


def test_any_flipped_bit_is_found(store) -> None:
    cache = ReferenceCache(store, "weights")
    cache.write([0, 1], rows(store, [0, 1]))
    cache.close()
    path = only_file(cache)
    data = path.read_bytes()
    good = {i: values.tolist() for i, values in enumerate(rows(store, [0, 1]))}
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reader = ReferenceCache(store, "weights")
        assert caught
        present = np.setdiff1d([0, 1], reader.missing([0, 1])).tolist()
        assert len(present) < 2
        assert all(reader.get(i).tolist() == good[i] for i in present)


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
    attached = store.with_reference(cache)
    for view in (attached, pickle.loads(pickle.dumps(attached))):
        values = view[2].reference_logps
        assert values is not None
        assert values.tolist() == rows(store, [2])[0].tolist()
        with pytest.raises(LookupError):
            view[0]
    assert store[2].reference_logps is None
