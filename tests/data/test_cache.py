"""The token store: found again, never half written, never trusted when damaged."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.pairs import read_pairs
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.store import prepare as cache
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.store.sealed import DamagedFileError
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer


@pytest.fixture(scope="module")
def rules(tokenizer) -> PairTokenizer:
    return PairTokenizer(tokenizer, DataOptions(max_length=64))


@pytest.fixture
def prepare(rules, tmp_path) -> Callable[..., TokenStore]:
    def run(files: Any, **options: Any) -> TokenStore:
        rule = options.pop("rules", rules)
        options["cache_dir"] = str(tmp_path / "cache")
        return prepare_store(files, rule, DataOptions(**options), progress=False)

    return run


def record(number: int, **extra: Any) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": f"yes {number}", "rejected": "no", **extra}


def test_the_store_gives_back_what_the_tokenizer_made(write, prepare, rules) -> None:
    records = [record(n, margin=n / 2, weight=n) for n in range(150)]
    store = prepare(write("d.jsonl", *records))
    assert len(store) == 150
    assert store.lengths.dtype == np.int32
    assert store.prompt_hash.dtype == np.uint64
    assert store.margins[3] == 1.5
    assert store.weights[149] == 149
    assert [pair.source for pair in store][:2] == ["d.jsonl:1", "d.jsonl:2"]
    expected = rules.tokenize(
        next(iter(read_pairs(write("one.jsonl", records[77]), on_problem=print)))
    )
    row = store[77]
    assert (row.index, row.source, row.margin, row.weight) == (77, "d.jsonl:78", 38.5, 77.0)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert getattr(row, name).tolist() == getattr(expected, name).tolist()
        assert getattr(row, name).flags.writeable
    parts = (row.prompt_ids, row.chosen_ids, row.rejected_ids)
    assert store.lengths[77].tolist() == [len(part) for part in parts]
    assert store[-1].index == 149
    with pytest.raises(IndexError):
        store[150]
    assert [pair.index for pair in store] == list(range(150))


def test_a_second_call_reads_nothing_again(write, prepare, monkeypatch) -> None:
    path = write("d.jsonl", record(1))
    first = prepare(path)
    monkeypatch.setattr(cache, "read_files", lambda *a, **k: pytest.fail("read again"))
    second = prepare(path)
    assert second.path == first.path
    assert second.report == first.report


def test_other_bytes_or_rules_make_another_store(write, prepare, tokenizer) -> None:
    path = write("d.jsonl", record(1))
    first = prepare(path)
    other_rules = prepare(path, rules=PairTokenizer(tokenizer, DataOptions(max_length=32)))
    stat = os.stat(path)
    write("d.jsonl", record(2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other_bytes = prepare(path)
    assert len({first.fingerprint, other_rules.fingerprint, other_bytes.fingerprint}) == 3


def test_bad_lines_stop_with_all_of_them_and_leave_nothing(write, prepare, tmp_path) -> None:
    lines = [record(1), *({"prompt": "q", "chosen": "x"} for _ in range(30)), record(2)]
    with pytest.raises(DataError) as caught:
        prepare(write("d.jsonl", *lines))
    assert caught.value.total == 30
    assert "d.jsonl:2: 'rejected' is missing" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_skipped_and_dropped_pairs_are_counted_and_written(write, prepare) -> None:
    same = {"prompt": "q", "chosen": "x", "rejected": "x"}
    path = write("d.jsonl", record(1), {"chosen": []}, same, "oops")
    store = prepare(path, on_error="skip")
    assert len(store) == 1
    assert store.report["skipped_lines"] == 2
    assert store.report["dropped"]["identical"] == 1
    lines = store.unused.read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [f"d.jsonl:{n}" for n in (2, 3, 4)]
    with pytest.raises(DataError, match=r"2 problems"):
        prepare(path, on_error="stop")
    assert len(prepare(path, on_error="skip")) == 1


def test_what_the_template_refuses_is_a_problem_of_the_data(write, prepare, make_tokenizer) -> None:
    refusing = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad word') }}"
        "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    rules = PairTokenizer(make_tokenizer(refusing), DataOptions(text_as_turns=True))
    path = write("d.jsonl", record(1), {"prompt": "bad", "chosen": "x", "rejected": "y"})
    with pytest.raises(DataError, match=r"d\.jsonl:2: the chat template fails: bad word"):
        prepare(path, rules=rules)
    store = prepare(path, rules=rules, on_error="skip")
    assert store.report["dropped"]["template"] == 1
    with pytest.raises(DataError, match="bad word"):
        prepare(path, rules=rules)


def test_no_pair_left_is_an_error_that_says_why(write, prepare) -> None:
    same = {"prompt": "q", "chosen": "x", "rejected": "x"}
    with pytest.raises(DataError, match=r"d\.jsonl:1: dropped: chosen and rejected are the same"):
        prepare(write("d.jsonl", same))


def test_unknown_on_error_names_its_key(write, prepare) -> None:
    with pytest.raises(ValueError, match=r"data\.on_error=ignore: must be one of stop"):
        prepare(write("d.jsonl", record(1)), on_error="ignore")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "header"])
def test_damage_is_named_and_the_store_built_again(write, prepare, damage) -> None:
    store = prepare(write("d.jsonl", *(record(n) for n in range(5))))
    expected = [pair.chosen_ids.tolist() for pair in store]
    data = store.path.read_bytes()
    damaged = {
        "flip": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "cut": data[:-1],
        "empty": b"",
        "other": b"x" * len(data),
        "header": data.replace(b"d.jsonl", b"e.jsonl"),
    }[damage]
    store.path.unlink()  # its bytes are mapped
    store.path.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=store.path.name):
        TokenStore(store.path)
    with pytest.warns(UserWarning, match=f"damaged token store, built again: .*{store.path.name}"):
        again = prepare(Path(store.path.parent.parent, "d.jsonl"))
    assert [pair.chosen_ids.tolist() for pair in again] == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(Path(store.path.parent.parent, "d.jsonl"))


def test_any_flipped_bit_of_the_arrays_is_found(write, prepare) -> None:
    path = prepare(write("d.jsonl", record(1))).path
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for position in range(start, len(data)):
        path.unlink()
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(DamagedFileError):
            TokenStore(path)


def test_a_store_that_cannot_be_opened_is_not_called_damaged(
    write, prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("d.jsonl", record(1))
    store = prepare(path)

    def refuse(file: Path, *args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        TokenStore(store.path)
    with pytest.raises(OSError, match="Too many open files"):
        cache._open_sound(store.path)


def test_builds_at_the_same_time_agree(write, prepare, tmp_path) -> None:
    path = write("d.jsonl", *(record(n) for n in range(300)))
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: prepare(path), range(4)))
    assert len({store.path for store in stores}) == 1
    assert {len(store) for store in stores} == {300}
    names = {stores[0].path.name, stores[0].unused.name}
    assert {entry.name for entry in (tmp_path / "cache").iterdir()} == names


def test_what_dead_builds_left_goes_at_the_next_start_and_live_builds_stay(
    write, prepare, tmp_path
) -> None:
    path = write("d.jsonl", record(1))
    prepare(path)
    code = (
        "import pathlib, sys; from minimind_dpo.disk import workspace\n"
        "with workspace(pathlib.Path(sys.argv[1])) as space:\n"
        "    (space / 'tokens').write_bytes(b'half'); print(space, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache" / "a.safetensors")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        space = Path(other.stdout.readline().decode().strip())
        os.utime(space, (0, 0))  # whatever its clock says
        prepare(path)
        assert (space / "tokens").exists()
        other.kill()
        other.wait()
        prepare(path)
        assert not space.exists()


def test_a_failing_build_leaves_no_folder(write, prepare, tmp_path, monkeypatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.StoreWriter, "finish", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(write("d.jsonl", record(1)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_store_pickles_as_its_path(write, prepare) -> None:
    store = prepare(write("d.jsonl", *(record(n) for n in range(50))))
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data)[7].chosen_ids.tolist() == store[7].chosen_ids.tolist()


def _store_length(store: TokenStore) -> int:
    return len(store[0].prompt_ids)


@pytest.mark.slow
def test_spawned_workers_open_the_same_store(write, prepare) -> None:
    store = prepare(write("d.jsonl", record(1)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_store_length, (store,)) == len(store[0].prompt_ids)


def test_the_prompts_hash_is_of_its_turns_not_of_what_a_cut_leaves(
    write, prepare, tokenizer
) -> None:
    long = "word " * 40
    lines = [
        {"prompt": long, "chosen": "x" * 30, "rejected": "y"},
        {"prompt": long, "chosen": "x", "rejected": "y"},
        {"prompt": [{"role": "user", "content": long}], "chosen": "x", "rejected": "z"},
        {"prompt": "other" + long, "chosen": "x", "rejected": "y"},
    ]
    store = prepare(write("d.jsonl", *lines))
    assert store[0].prompt_ids.tolist() != store[1].prompt_ids.tolist()
    assert store.prompt_hash[0] == store.prompt_hash[1] == store.prompt_hash[2]
    assert store.prompt_hash[0] != store.prompt_hash[3]
    other = prepare(
        write("d.jsonl", *lines), rules=PairTokenizer(tokenizer, DataOptions(max_length=128))
    )
    assert other.prompt_hash.tolist() == store.prompt_hash.tolist()


def test_tokenising_leaves_the_environment_as_it_was(write, prepare, monkeypatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    prepare(write("d.jsonl", record(1)))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    prepare(write("e.jsonl", record(1)))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_the_cache_folder_holds_nothing_but_stores(write, prepare, tmp_path) -> None:
    evil = write("d.jsonl", {**record(1), "source": "../../evil"})
    store = prepare(evil)
    assert store.path.parent == tmp_path / "cache"
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "d.jsonl"}
    assert store.unused.read_text() == ""
