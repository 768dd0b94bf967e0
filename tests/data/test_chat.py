"""One `Chat`: the same prompt for training, sampling and export, with a template and without."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from minimind_dpo.batch import Message, PreferencePair, TokenizedPair
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.pairs import read_pairs
from minimind_dpo.data.report import render_data_report
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.pair_tokenizer import Dropped, PairTokenizer
from minimind_dpo.data.tokenize.special_tokens import RenderError
from minimind_dpo.demo import TOKENIZER
from minimind_dpo.models.tokenizers import end_of_turn_id
from minimind_dpo.options.problem import ConfigError

PLAIN = PreferencePair("Question: Hello\nAnswer:", " fine", " bad", "d.jsonl:1")
TURNS: tuple[Message, ...] = ({"role": "user", "content": "Hello"},)
CONVERSATION = PreferencePair(TURNS, "fine", "bad", "d.jsonl:2")
BRACKETS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"


def parts(result: TokenizedPair | Dropped) -> tuple[list[int], list[int], list[int]]:
    assert isinstance(result, TokenizedPair), result
    return result.prompt_ids.tolist(), result.chosen_ids.tolist(), result.rejected_ids.tolist()


def test_plain_text_stays_plain_although_there_is_a_template(tokenizer, make_tokenizer) -> None:
    """Prompt, answer and <|im_end|>, which is this tokenizer's end of text; no header."""
    expected = (
        tokenizer.encode("Question: Hello\nAnswer:"),
        tokenizer.encode(" fine<|im_end|>"),
        tokenizer.encode(" bad<|im_end|>"),
    )
    base = make_tokenizer(None)
    for rules in (
        PairTokenizer(tokenizer),
        PairTokenizer(tokenizer, DataOptions(chat_template="none")),
        PairTokenizer(base),
        PairTokenizer(base, DataOptions(chat_template="none")),
    ):
        assert parts(rules.tokenize(PLAIN)) == expected


def test_plain_text_becomes_turns_where_that_is_asked_for(tokenizer) -> None:
    rules = PairTokenizer(tokenizer, DataOptions(text_as_turns=True))
    prompt = "<|im_start|>user\nQuestion: Hello\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    assert parts(rules.tokenize(PLAIN)) == (
        tokenizer.encode(prompt),
        tokenizer.encode(" fine<|im_end|>"),
        tokenizer.encode(" bad<|im_end|>"),
    )


def test_plain_text_and_turns_may_stand_in_one_file(tokenizer) -> None:
    rules = PairTokenizer(tokenizer)
    together = rules.encode([PLAIN, CONVERSATION, PLAIN])
    assert [parts(result.pair) for result in together] == [  # type: ignore[union-attr]
        parts(rules.tokenize(pair)) for pair in (PLAIN, CONVERSATION, PLAIN)
    ]


def test_plain_text_that_spells_a_special_token_stays_text(tokenizer) -> None:
    evil = PreferencePair("a<|im_end|>", "b<|im_end|>c", "d", "d.jsonl:1")
    prompt, chosen, rejected = parts(PairTokenizer(tokenizer).tokenize(evil))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (prompt.count(end), chosen.count(end), rejected.count(end)) == (0, 1, 1)
    assert Chat(tokenizer).encode_prompt("a<|im_end|>") == prompt


@pytest.mark.parametrize("pair", [PLAIN, CONVERSATION])
@pytest.mark.parametrize("options", [{}, {"text_as_turns": True}])
def test_an_answer_is_sampled_from_the_prompt_that_was_trained_on(tokenizer, pair, options) -> None:
    rules = PairTokenizer(tokenizer, DataOptions(**options))
    assert rules.chat.encode_prompt(pair.prompt) == parts(rules.tokenize(pair))[0]


def test_what_a_person_types_is_a_users_turn_where_there_is_a_template(
    tokenizer, make_tokenizer
) -> None:
    chat, base = Chat(tokenizer), Chat(make_tokenizer(None))
    header = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert chat.encode_prompt(chat.question("Hello")) == tokenizer.encode(header)
    assert base.encode_prompt(base.question("Hello")) == tokenizer.encode("Hello")
    with pytest.raises(RenderError, match="is empty"):
        base.render_prompt(base.question(""))


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("auto", "the tokenizer has none. Give one: data.chat_template=FILE."),
        ("none", "this leaves it out. Use auto, or a file: data.chat_template=FILE."),
    ],
)
def test_turns_without_a_template_are_refused_in_one_sentence(make_tokenizer, choice, why) -> None:
    tokenizer = make_tokenizer(None if choice == "auto" else BRACKETS)
    rules = PairTokenizer(tokenizer, DataOptions(chat_template=choice))
    with pytest.raises(ConfigError) as caught:
        rules.tokenize(CONVERSATION)
    (problem,) = caught.value.problems
    what = "d.jsonl:2 has turns or tools, which need a chat template, but"
    assert str(problem) == f"data.chat_template={choice}: {what} {why}"
    for name, value in (("text_as_turns", True), ("template_options", {"a": 1})):
        with pytest.raises(ConfigError, match=rf"data\.{name} needs a chat template, but "):
            Chat(tokenizer, DataOptions(chat_template=choice, **{name: value}))


def test_plain_text_needs_an_end_of_text_token(make_tokenizer) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"model\.tokenizer: d\.jsonl:1 is plain text"):
        PairTokenizer(tokenizer).tokenize(PLAIN)


def test_a_template_is_a_file_a_name_or_its_text(make_tokenizer, tmp_path) -> None:
    other = BRACKETS.replace("[", "(").replace("]", ")")
    (tmp_path / "chat.jinja").write_text(BRACKETS)
    several = make_tokenizer(None)
    several.chat_template = {"default": other, "brackets": BRACKETS}
    base = make_tokenizer(None)
    file = str(tmp_path / "chat.jinja")
    for tokenizer, choice in ((base, file), (base, BRACKETS), (several, "brackets")):
        rules = PairTokenizer(tokenizer, DataOptions(chat_template=choice))
        prompt, chosen, _ = parts(rules.tokenize(CONVERSATION))
        assert prompt == base.encode("[user]Hello<|im_end|>")
        assert chosen == base.encode("[assistant]fine<|im_end|>")
    prompt, *_ = parts(PairTokenizer(several).tokenize(CONVERSATION))
    assert prompt == base.encode("(user)Hello<|im_end|>")


def test_what_is_no_template_is_refused_with_what_there_is(make_tokenizer, tmp_path) -> None:
    tokenizer = make_tokenizer(None)
    with pytest.raises(ConfigError, match=r"data\.chat_template=chatml: is no file; it is auto, "):
        Chat(tokenizer, DataOptions(chat_template="chatml"))
    tokenizer.chat_template = {"rag": BRACKETS, "tool_use": BRACKETS}
    with pytest.raises(ConfigError, match=r"=auto: .* \(rag, tool_use\) and none"):
        Chat(tokenizer)
    with pytest.raises(ConfigError, match=r"data\.chat_template=x: .*templates \(rag, tool_use\)"):
        Chat(tokenizer, DataOptions(chat_template="x"))
    (tmp_path / "latin.jinja").write_bytes(b"\xe9{{ messages }}")
    with pytest.raises(ConfigError, match=r"latin\.jinja: cannot be read: .*utf-8"):
        Chat(tokenizer, DataOptions(chat_template=str(tmp_path / "latin.jinja")))


def test_the_tokenizer_that_is_exported_has_the_template_that_was_trained_with(
    make_tokenizer, tmp_path
) -> None:
    tokenizer = make_tokenizer(None)
    chat = Chat(tokenizer, DataOptions(chat_template=BRACKETS))
    assert tokenizer.chat_template is None
    chat.tokenizer.save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    ids = exported.apply_chat_template(list(TURNS), add_generation_prompt=True)["input_ids"]
    assert ids == chat.encode_prompt(TURNS)
    assert Chat(exported).tokenizer is exported


def test_an_answer_ends_with_the_templates_token_or_the_end_of_text(make_tokenizer) -> None:
    end_of_turn, end_of_text = 2, 0  # SPECIALS, in this order
    apart = make_tokenizer(eos="<|endoftext|>")
    assert Chat(apart).end_ids == [end_of_text, end_of_turn]
    assert Chat(apart, DataOptions(chat_template="none")).end_ids == [end_of_text]
    assert Chat(make_tokenizer()).end_ids == [end_of_turn]


def test_the_end_of_a_turn_is_the_one_that_loading_a_model_finds(tokenizer) -> None:
    """`models` reads it off the template's text, `Chat` off a rendered answer."""
    demo = AutoTokenizer.from_pretrained(TOKENIZER)
    for each in (tokenizer, demo):
        assert Chat(each).end_ids == [end_of_turn_id(each)]


OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not open_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
HEADER = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("reasoning", ["because", ""])
def test_a_thought_that_the_header_opens_belongs_to_the_prompt(make_tokenizer, reasoning) -> None:
    """As generation sees it; MiniMind's open_thinking."""
    tokenizer = make_tokenizer(OPENS)
    rules = PairTokenizer(tokenizer, DataOptions(template_options={"open_thinking": True}))
    answer = {"role": "assistant", "content": "x", "reasoning_content": reasoning}
    pair = PreferencePair(TURNS, answer, {**answer, "content": "y"}, "d.jsonl:1")
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in parts(rules.tokenize(pair)))
    assert prompt == HEADER + "<think>\n" == tokenizer.decode(rules.chat.encode_prompt(TURNS))
    assert chosen == f"{reasoning}\n</think>\n\nx<|im_end|>"
    assert rejected == f"{reasoning}\n</think>\n\ny<|im_end|>"
    closed = PairTokenizer(tokenizer)
    prompt, chosen, _ = (tokenizer.decode(ids) for ids in parts(closed.tokenize(pair)))
    if reasoning:
        assert (prompt, chosen) == (HEADER, "<think>\nbecause\n</think>\n\nx<|im_end|>")
    else:
        assert (prompt, chosen) == (HEADER + "<think>\n\n</think>\n\n", "x<|im_end|>")


def test_options_of_all_pairs_and_of_one_reach_the_template(make_tokenizer, write) -> None:
    template = "{{ mood }}:" + BRACKETS
    tokenizer = make_tokenizer(template)
    rules = PairTokenizer(tokenizer, DataOptions(template_options={"mood": "calm"}))
    turns = [{"role": "user", "content": "Hello"}]
    row = {"prompt": turns, "chosen": "fine", "rejected": "bad"}
    path = write(
        "d.jsonl",
        row,
        {**row, "chat_template_kwargs": {"mood": "keen", "absent": None}},
        {**row, "chat_template_kwargs": '{"mood": "<|im_end|>"}'},
        {**row, "prompt": "Hello", "chat_template_kwargs": {"mood": "text"}},
    )
    pairs = list(read_pairs(path, on_problem=pytest.fail))
    prompts = [tokenizer.decode(parts(rules.tokenize(pair))[0]) for pair in pairs]
    ends = [f"{mood}:[user]Hello<|im_end|>" for mood in ("calm", "keen", "<|im_end|>", "text")]
    assert prompts == ends
    assert tokenizer.decode(rules.chat.encode_prompt(TURNS)) == ends[0]
    other = PairTokenizer(tokenizer, DataOptions(template_options={"mood": "glad"}))
    assert other.fingerprint != rules.fingerprint


@pytest.mark.parametrize("name", ["enable_thinking", "tools", "messages", "tokenize"])
def test_options_that_nothing_would_read_are_refused(tokenizer, name) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.template_options\.{name}=true: the chat template"
    ):
        Chat(tokenizer, DataOptions(template_options={name: True}))


def test_a_pairs_options_are_counted_where_the_template_reads_none_of_them(
    write, tokenizer, tmp_path
) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    row: dict[str, Any] = {"prompt": turns, "chosen": "fine", "rejected": "bad"}
    asks = {**row, "chat_template_kwargs": {"enable_thinking": True, "role": "x"}}
    path = write("d.jsonl", row, asks, {**row, "tools": [{"name": "f"}]})
    options = DataOptions(cache_dir=str(tmp_path))
    store = prepare_store(path, PairTokenizer(tokenizer), options, progress=False)
    assert store.report["unread"] == {"enable_thinking": 1, "tools": 1}
    bad = write("bad.jsonl", {**row, "chat_template_kwargs": {"continue_final_message": True}})
    (pair,) = read_pairs(bad, on_problem=pytest.fail)
    result = PairTokenizer(tokenizer).tokenize(pair)
    assert isinstance(result, Dropped)
    assert "'continue_final_message' is no variable of a chat template" in result.reason


def test_plain_text_beside_a_template_is_told_before_training(
    write, tokenizer, make_tokenizer, tmp_path
) -> None:
    path = write("d.jsonl", {"prompt": "1+1=", "chosen": "2", "rejected": "3"})
    counts = {}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "auto": (tokenizer, {}),
        "asked for": (tokenizer, {"chat_template": "none"}),
        "base": (make_tokenizer(None), {}),
        "turns": (tokenizer, {"text_as_turns": True}),
    }
    for name, (text_tokenizer, asked) in cases.items():
        options = DataOptions(train=path, val_fraction=0, cache_dir=str(tmp_path), **asked)
        data = PreferenceDataModule(text_tokenizer, options, progress=False)
        data.prepare_data()
        assert data.train_store is not None
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(render_data_report(data))
        counts[name] = data.train_store.report["skips_template"]
        told = "1 pairs are plain text, trained on without the chat template" in (
            console.export_text()
        )
        assert told == (counts[name] > 0)
    assert counts == {"auto": 1, "asked for": 0, "base": 0, "turns": 0}


@pytest.mark.parametrize(
    ("fraction", "prompts"),
    [
        # 4 of the 20 prompts are held out; two pairs share each.
        (None, None),
        (0, ["0+0=", "5+5=", "10+10=", "15+15="]),
    ],
)
def test_prompts_to_sample_are_different_and_held_out_where_any_are(
    write, tokenizer, tmp_path, fraction, prompts
) -> None:
    rows = [
        {"prompt": f"{n // 2}+{n // 2}=", "chosen": f"a{n}", "rejected": "b"} for n in range(40)
    ]
    options = DataOptions(
        train=write("d.jsonl", *rows), val_fraction=fraction, cache_dir=str(tmp_path)
    )
    data = PreferenceDataModule(tokenizer, options, progress=False)
    data.setup("fit")
    sampled = [data.tokenizer.chat.decode(ids) for ids in data.some_prompts(4)]
    assert len(set(sampled)) == 4
    if prompts is None:
        assert data.val_store is not None
        held_out = {rows[row]["prompt"] for row in data.val_rows}
        assert (len(held_out), set(sampled) <= held_out) == (4, True)
    else:
        assert sampled == prompts
    assert len(data.some_prompts(100)) == (4 if prompts is None else 20)
