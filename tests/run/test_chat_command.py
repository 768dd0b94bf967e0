"""`chat`: turns from a pipe and in a terminal, its commands, and what does not fit."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind_dpo import chat
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo import MODEL, TOKENIZER
from minimind_dpo.evaluation.conversation import AnswerStream, Conversation, Sampling
from minimind_dpo.evaluation.sampling import sample_answers
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.evaluation import lending
from minimind_dpo.run.talk import Talker

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=12, seed=0)
ON_MODEL = [f"model.path={MODEL}", f"model.tokenizer={TOKENIZER}", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def demo() -> tuple[LoadedModel, Chat]:
    loaded = load_model(MODEL, TOKENIZER)
    assert loaded.tokenizer is not None
    return loaded, Chat(loaded.tokenizer)


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """What is written for some lines from a pipe: (standard output, standard error)."""

    def run(lines: str | bytes, *arguments: str) -> tuple[str, str]:
        data = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        chat.run([*arguments, "log_level=warning"])
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_a_pipe_gets_one_answer_a_turn_and_nothing_else(
    said: Callable[..., tuple[str, str]], demo: tuple[LoadedModel, Chat]
) -> None:
    loaded, renderer = demo
    out, err = said("3加5等于多少？\n\n你好\n", *ON_MODEL, "temperature=0", "max_new_tokens=12")
    first, second, *rest = out.split("\n")
    assert rest == [""]
    assert err == ""
    greedy: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
    turns = [{"role": "user", "content": "3加5等于多少？"}]
    ids = renderer.encode_prompt(turns)
    assert sample_answers(loaded.model, renderer, [ids], **greedy) == [first]
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "你好"}]
    ids = renderer.encode_prompt(turns)
    assert sample_answers(loaded.model, renderer, [ids], **greedy) == [second]


def test_commands_reset_save_and_compare_with_the_start_of_the_run(
    said: Callable[..., tuple[str, str]], finished_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    lines = f"你好\n/compare\n/save {file}\n/reset\n你好\n/resett\n/save\n/save /\n/help\n"
    out, err = said(lines, f"run={finished_run}", "max_new_tokens=12", "system=简短", "seed=3")
    policy, reference, again, *rest = out.split("\n")
    assert rest == [""]
    assert again == policy  # the same draws for the same place in a conversation
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [turn["role"] for turn in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][-1]["content"] == policy
    assert saved["sampling"]["seed"] == 3
    assert "/resett: there is no such command. Did you mean /reset?" in err
    assert "/save: name a file" in err
    assert "has an empty name" in err  # what "/" is
    assert "/compare" in err.split("/save: name a file")[1]
    begun, _ = said("你好\n", *ON_MODEL, "max_new_tokens=12", "system=简短", "seed=3")
    assert begun == f"{reference}\n"


def test_without_a_reference_compare_says_what_to_give(
    said: Callable[..., tuple[str, str]],
) -> None:
    out, err = said("/compare\n你好\n/compare\n", *ON_MODEL, "max_new_tokens=2")
    assert out.count("\n") == 1
    assert "ask something first" in err
    assert "give reference.path=MODEL" in err


def test_messages_go_to_standard_error_and_none_is_about_training(
    said: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text("loss: {type: ipo, reduction: padded_mean}\n")
    _, err = said("", *ON_MODEL, "--config", str(settings))
    assert err == ""
    logging.getLogger("minimind_dpo").error("a message")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


def test_input_is_utf_8_whatever_the_locale_and_other_bytes_do_not_end_it(
    said: Callable[..., tuple[str, str]],
) -> None:
    out, _ = said("你好\n".encode() + b"\xff\xfe?\n", *ON_MODEL, "max_new_tokens=4")
    assert out.count("\n") == 2


def test_what_does_not_fit_is_left_out_by_whole_exchanges_and_told(
    demo: tuple[LoadedModel, Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, renderer = demo
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "minimind_dpo.evaluation.conversation.sample_completions",
        lambda model, prompts, **settings: seen.extend(prompts) or [[5]],
    )
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 80)
    conversation = Conversation(renderer, SAMPLING, "简短")
    told: list[str] = []
    for number in range(6):
        answer = conversation.answer(loaded.model, f"{number}加5", lambda piece: None, told.append)
        conversation.add(f"{number}加5", answer)
    assert max(map(len, seen)) <= 80 - 12
    assert "the first 1 exchange(s) are left out" in told[0]
    kept = renderer.decode(seen[-1], special=True)
    assert kept.startswith(
        renderer.decode(
            renderer.encode_prompt(
                [{"role": "system", "content": "简短"}, {"role": "user", "content": "x"}]
            ),
            special=True,
        ).split("x")[0]
    )
    assert "0加5" not in kept
    assert "5加5" in kept
    told.clear()
    conversation.answer(loaded.model, "长" * 200, lambda piece: None, told.append)
    assert "its end is read" in told[-1]
    assert len(seen[-1]) == 80 - 12


def test_a_stream_hands_on_whole_characters_alone() -> None:
    encoded = "é好".encode()
    pieces: list[str] = []
    stream = AnswerStream(lambda ids: bytes(ids).decode(errors="replace"), pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for byte in encoded[:-1]:
        stream.put(torch.tensor([byte]))
    assert pieces == ["é"]
    stream.put(torch.tensor([encoded[-1]]))
    stream.end()
    assert pieces == ["é", "好"]
    assert stream.text == "é好"


def test_ctrl_c_stops_an_answer_and_keeps_what_there_was_of_it(
    demo: tuple[LoadedModel, Chat],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded, renderer = demo
    conversation = Conversation(renderer, SAMPLING)

    def interrupted(self: Any, model: Any, question: str, write: Any, tell: Any) -> str:
        write("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "answer", interrupted)
    Talker(loaded, conversation, None, terminal=True).take("你好")
    assert [turn["content"] for turn in conversation.turns] == ["你好", "half"]
    with pytest.raises(KeyboardInterrupt):
        Talker(loaded, conversation, None, terminal=False).take("你好")


def test_in_a_terminal_ctrl_c_at_the_prompt_goes_on_and_ctrl_d_leaves(
    demo: tuple[LoadedModel, Chat],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = iter(["a", KeyboardInterrupt(), "b", EOFError()])

    def type_line(prompt: str) -> str:
        item = next(typed)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr("builtins.input", type_line)
    talker = Talker(demo[0], Conversation(demo[1], SAMPLING), None, terminal=True)
    assert list(talker.lines()) == ["a", "b"]
    assert "Ctrl-D leaves" in capsys.readouterr().out


def test_compare_in_a_terminal_shows_both_answers_beside_each_other(
    demo: tuple[LoadedModel, Chat], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, renderer = demo
    conversation = Conversation(renderer, SAMPLING)
    Talker(loaded, conversation, lending(loaded.model), terminal=True).take("你好")
    answer = str(conversation.turns[-1]["content"])
    capsys.readouterr()
    Talker(loaded, conversation, lending(loaded.model), terminal=True).take("/compare")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if answer in line]
    assert line.count(answer) == 2  # the model against itself, with the same draws


def test_a_system_s_turn_needs_a_template(said: Callable[..., tuple[str, str]]) -> None:
    with pytest.raises(ConfigError, match=r"system=kind: needs a chat template"):
        said("", *ON_MODEL, "data.chat_template=none", "system=kind")


def test_a_base_model_continues_each_text_by_itself(
    said: Callable[..., tuple[str, str]], demo: tuple[LoadedModel, Chat]
) -> None:
    loaded, _ = demo
    assert loaded.tokenizer is not None
    plain = Chat(loaded.tokenizer, DataOptions(chat_template="none"))
    out, _ = said(
        "你好\n你好\n",
        *ON_MODEL,
        "data.chat_template=none",
        "temperature=0",
        "max_new_tokens=4",
    )
    ids = plain.encode_prompt("你好")
    expected = sample_answers(loaded.model, plain, [ids], temperature=0, max_new_tokens=4)
    assert out == f"{expected[0]}\n" * 2
