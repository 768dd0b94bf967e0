"""A chat template is a program: whatever it does, the run ends at once and in a sentence."""

from __future__ import annotations

import sys
import time

import pytest

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.options.problem import ConfigError

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits need a fork that is safe")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no token to stop at"),
        ("{{ messages[0].content }}<|im_end|>", "leaves out the question or the answer"),
        ("{% set a = 1 %}", "leaves out the question or the answer"),
        ("{{ raise_exception('no\nway') }}", "cannot be rendered: the chat template fails: no way"),
        (GOOD + "\n{{ x", r"TemplateSyntaxError: .* \(line 3\)"),
        ("{{ 1 // 0 }}" + GOOD, "ZeroDivisionError"),
        ("{{ 2.0 ** 100000 }}" + GOOD, "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + GOOD, "RecursionError"),
        ("{{ ''.__class__.__mro__ }}" + GOOD, "SecurityError"),
        ("{{ nobody.knows }}" + GOOD, "UndefinedError: 'nobody' is undefined"),
        ("{{ 0 // (not add_generation_prompt) }}" + GOOD, "ZeroDivisionError"),
        pytest.param("{{ 'x' * 2000000 }}" + GOOD, r"it comes to 2,000,\d+ char", marks=linux),
        pytest.param("{{ 'x'.center(2 * 10 ** 9) }}" + GOOD, "MemoryError", marks=linux),
    ],
)
def test_templates_that_cannot_work_are_refused_at_once(make_tokenizer, template, message) -> None:
    with pytest.raises(ConfigError, match=rf"  data\.chat_template: .*{message}"):
        Chat(make_tokenizer(template))


@linux
@pytest.mark.parametrize("endless", [LOOPS, "{{ 9 ** (9 ** 9) }}", "{{ (9 ** 9999999) | string }}"])
def test_templates_that_never_end_are_ended(make_tokenizer, monkeypatch, endless) -> None:
    monkeypatch.setattr("minimind_dpo.data.tokenize.template._SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(ConfigError, match="it takes longer than"):
        Chat(make_tokenizer(endless + GOOD))
    assert time.monotonic() - start < 5


def test_a_template_may_need_only_what_it_is_given(make_tokenizer) -> None:
    chat = Chat(make_tokenizer(GOOD))
    assert chat.render_prompt([{"role": "user", "content": "q"}]).startswith("user: q")
