"""A Modelfile, from which ollama makes a model of a GGUF file, chat template included.

ollama writes conversations by templates of Go. One is made of what the chat template itself writes
around a system's, a user's and an assistant's turn, so that both write the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

Turn: TypeAlias = dict[str, str]
Render: TypeAlias = Callable[[list[Turn]], str]
"""Text of some turns, that of special tokens included, up to where an answer begins."""

_WORDS = {"system": "SYSTEM-TURN", "user": "USER-TURN", "assistant": "ANSWER-TURN"}


def modelfile(file_name: str, render: Render | None, stops: Sequence[str], context: int) -> str:
    """The content of a Modelfile.

    Args:
        file_name: The GGUF file beside it.
        render: The chat template; None for a base model, which continues plain text.
        stops: Texts of the tokens that end an answer.
        context: Tokens of a conversation at most.
    """
    template = "{{ .Prompt }}" if render is None else go_template(render)
    lines = [f"FROM ./{file_name}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER num_ctx {context}", "PARAMETER temperature 0.7", "PARAMETER top_p 0.9"]
    return "\n".join(lines) + "\n"


def go_template(render: Render) -> str | None:
    """A template of Go that writes turns as the chat template does.

    Returns:
        None where that is not known: the template has no system's turn, changes what is said, or
        writes what ends Go's own signs.
    """
    user, answer = ({"role": role, "content": _WORDS[role]} for role in ("user", "assistant"))
    system = {"role": "system", "content": _WORDS["system"]}
    try:
        plain = _around(render, [user, answer, user])
        asked = _around(render, [system, user, answer, user])
    except ValueError:
        return None
    first, answered, further, last = plain
    before_system, after_system, *same = asked
    written = "".join((*plain, *asked))
    if same != [answered, further, last] or '"""' in written or "{{" in written:
        return None
    return (
        "{{ range $i, $m := .Messages }}"
        '{{ if eq $m.Role "system" }}' + before_system + "{{ $m.Content }}"
        '{{ else if eq $m.Role "user" }}'
        "{{ if eq $i 0 }}"
        + first
        + "{{ else if and $.System (eq $i 1) }}"
        + after_system
        + "{{ else }}"
        + further
        + "{{ end }}{{ $m.Content }}"
        "{{ if eq (len (slice $.Messages $i)) 1 }}" + last + "{{ else }}" + answered + "{{ end }}"
        '{{ else if eq $m.Role "assistant" }}{{ $m.Content }}{{ end }}'
        "{{ end }}"
    )


def _around(render: Render, turns: list[Turn]) -> list[str]:
    """What is written before each turn's content and after the last.

    Raises:
        ValueError: The contents are not in it, once each and in order.
    """
    text = render(turns)
    ends = [0]
    for turn in turns:
        place = text.index(turn["content"], ends[-1])
        ends += [place, place + len(turn["content"])]
    ends.append(len(text))
    pieces = [text[start:end] for start, end in pairwise(ends)][::2]
    if any(word in piece for piece in pieces for word in _WORDS.values()):
        raise ValueError("a turn is written twice")
    return pieces
