"""A chat template is a program: whatever it does, the run ends at once and in a sentence."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest

from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.options.problem import ConfigError

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
timers = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timers of CPU time")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no token to stop at"),
        ("{{ messages[0].content }}<|im_end|>", "leaves out the question or the answer"),
        ("{% set a = 1 %}", "leaves out the question or the answer"),
        ("{{ raise_exception('no\nway') }}", "cannot be rendered: the chat template fails: no way"),
        (GOOD + "\n{{ x", r"TemplateSyntaxError: .* \(line 3\)"),
        ("{{ 1 // 0 }}" + GOOD, "ZeroDivisionError"),
        ("{{ (9 ** 9999999) | string }}" + GOOD, r"uses a power \(\*\*\), which may take hours"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + GOOD, "RecursionError"),
        ("{{ ''.__class__.__mro__ }}" + GOOD, "SecurityError"),
        ("{{ nobody.knows }}" + GOOD, "UndefinedError: 'nobody' is undefined"),
        ("{{ 0 // (not add_generation_prompt) }}" + GOOD, "ZeroDivisionError"),
        ("{{ 'x' * 2000000 }}" + GOOD, r"it comes to 2,000,\d+ char"),
        pytest.param("{{ 'x'.center(2000000000) }}" + GOOD, "MemoryError", marks=linux),
    ],
)
def test_templates_that_cannot_work_are_refused_at_once(make_tokenizer, template, message) -> None:
    with pytest.raises(ConfigError, match=rf"  data\.chat_template: .*{message}"):
        Chat(make_tokenizer(template))


@timers
def test_a_template_that_never_ends_is_interrupted(make_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("minimind_dpo.data.tokenize.template._SECONDS", 0.3)
    before = signal.getsignal(signal.SIGVTALRM)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"the chat template takes longer than 0\.3 seconds"):
        Chat(make_tokenizer(LOOPS + GOOD))
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


@timers
def test_a_pair_that_a_template_never_ends_with_ends_the_run_at_its_line(
    make_tokenizer, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("minimind_dpo.data.tokenize.template._SECONDS", 0.3)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{word} {number}"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for number, word in enumerate(["short", "endless", "short"])
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loops = "{% if messages[0].content.startswith('endless') %}" + LOOPS + "{% endif %}"
    tokenizer = PairTokenizer(make_tokenizer(loops + GOOD))
    options = DataOptions(cache_dir=str(tmp_path / "cache"), on_error="skip")
    start = time.monotonic()
    with pytest.raises(DataError, match=r"d.jsonl:2: the chat template takes longer than 0.3 sec"):
        prepare_store(data, tokenizer, options, progress=False)
    assert time.monotonic() - start < 5


def test_a_template_may_need_only_what_it_is_given(make_tokenizer) -> None:
    chat = Chat(make_tokenizer(GOOD))
    assert chat.render_prompt([{"role": "user", "content": "q"}]).startswith("user: q")
