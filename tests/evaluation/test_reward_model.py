"""The judge `reward_model`, with tiny classifiers of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
)

import minimind_dpo.demo
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges import reward_model
from minimind_dpo.evaluation.judges.judge import JudgeError
from minimind_dpo.evaluation.judges.reward_model import RewardModelJudge, encode, load
from minimind_dpo.evaluation.options import RewardModelOptions
from minimind_dpo.options.problem import ConfigError

from .planted import asked, silent, written

TOKENIZER = Path(minimind_dpo.demo.__file__).parent / "assets" / "tokenizer"
PROMPTS = [asked(text) for text in ("你好", "What is 7 plus 6?", "3加5等于多少？", "Who are you?")]
FIRST = [written(text) for text in ("您好！很高兴见到您。", "13", "等于8。", "A model.")]
SECOND = [written(text) for text in ("嗯", "It is 13, with pleasure." * 4, "等于8。", "Nobody!")]


def sizes(**more: int) -> dict[str, int]:
    vocabulary = len(AutoTokenizer.from_pretrained(TOKENIZER))
    return {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        **more,
    }


def save(folder: Path, model: torch.nn.Module, template: bool = True) -> str:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    if not template:
        tokenizer.chat_template = None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(**sizes(), num_labels=1, pad_token_id=0)  # type: ignore[arg-type]
    return save(tmp_path / "llama", LlamaForSequenceClassification(config))


@pytest.fixture
def bert(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = BertConfig(**sizes(), num_labels=1)  # type: ignore[arg-type]
    return save(tmp_path / "bert", BertForSequenceClassification(config), template=False)


def judge(path: str, **options: int) -> RewardModelJudge:
    return RewardModelJudge(
        RewardModelOptions(path, **options), lambda: torch.device("cpu"), silent
    )


def alone(path: str, prompt: Prompt, answer: Answer) -> float:
    """The score of one answer, unpadded, by transformers alone."""
    model, tokenizer = load(path)
    ids = torch.tensor([encode(tokenizer, prompt, answer, 2048)["input_ids"]])
    with torch.no_grad():
        return float(model(ids, attention_mask=torch.ones_like(ids)).logits)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_scores_in_a_batch_are_those_of_each_answer_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    model, tokenizer = load(path)
    answers = [*zip(PROMPTS, FIRST, strict=True), *zip(PROMPTS, SECOND, strict=True)]
    expected = [alone(path, prompt, answer) for prompt, answer in answers]
    for size in (1, 3, 8):
        scores = judge(path, batch_size=size)._scores(model, tokenizer, answers)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    preferences = judge(path).compare(PROMPTS, FIRST, SECOND)
    signs = np.sign(np.array(expected[:4]) - np.array(expected[4:]))
    assert preferences.tolist() == signs.tolist()
    assert preferences[2] == 0.0  # the same answer
    assert judge(path).compare(PROMPTS, SECOND, FIRST).tolist() == (-signs).tolist()


def test_the_classifier_is_loaded_once_for_all_that_is_compared(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(reward_model, "load", lambda path: loads.append(path) or load(path))
    one = judge(llama)
    first, again = (one.compare(PROMPTS, FIRST, SECOND) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert loads == [llama]


def test_the_conversation_goes_through_the_classifier_s_own_template(llama: str) -> None:
    _, tokenizer = load(llama)
    turns = ({"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"})
    expected = tokenizer.apply_chat_template(list(turns), tokenize=False)
    got = encode(tokenizer, asked("你好"), written("您好"), 2048)["input_ids"]
    assert tokenizer.decode(got) == expected
    plain = Prompt(np.array([1], np.int32), "你好")
    assert encode(tokenizer, plain, written("您好"), 2048)["input_ids"] == got
    assert encode(tokenizer, plain, written("您好"), 5)["input_ids"] == got[-5:]


def test_without_a_template_prompt_and_answer_are_a_pair_of_texts(bert: str) -> None:
    _, tokenizer = load(bert)
    got = encode(tokenizer, asked("你好"), written("您好"), 2048)
    assert got["input_ids"] == tokenizer("你好", "您好")["input_ids"]
    assert len(encode(tokenizer, asked("a" * 900), written("您好"), 9)["input_ids"]) == 9


def fails(template: str) -> str:
    return "{{ raise_exception('" + template + "') }}"


def test_a_template_that_fails_is_told_with_its_prompt(llama: str) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = fails("no system role")
    tokenizer.save_pretrained(llama)
    with pytest.raises(JudgeError, match="fails on the prompt at x:1: no system role"):
        judge(llama).compare(PROMPTS, FIRST, SECOND)


def test_scores_that_are_no_numbers_are_left_open(llama: str) -> None:
    model, tokenizer = load(llama)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    answers = list(zip(PROMPTS, FIRST, strict=True))
    assert np.isnan(judge(llama)._scores(model, tokenizer, answers)).all()


def test_what_is_no_reward_model_is_refused_before_training(tmp_path: Path) -> None:
    two = LlamaForSequenceClassification(LlamaConfig(**sizes(), num_labels=2))  # type: ignore[arg-type]
    plain = LlamaForCausalLM(LlamaConfig(**sizes(), num_labels=1))  # type: ignore[arg-type]
    for path, why in (
        (save(tmp_path / "two", two), "has 2 labels, but a score is one number"),
        (save(tmp_path / "plain", plain), "lacks the weights score.weight"),
        (str(tmp_path / "nothing"), "nothing: "),
    ):
        with pytest.raises(ConfigError, match=f"judge.reward_model.path=.*{why}"):
            load(path, "meta")


def test_code_that_comes_with_a_model_is_not_run(llama: str) -> None:
    config = Path(llama) / "config.json"
    text = config.read_text(encoding="utf-8")
    (Path(llama) / "mine.py").write_text("raise SystemExit('run')")
    own = '"auto_map": {"AutoConfig": "mine.C", "AutoModelForSequenceClassification": "mine.M"},'
    config.write_text(
        text.replace("{", "{" + own, 1).replace('"model_type": "llama"', '"model_type": "own"'),
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"judge.reward_model.path=.*cannot be loaded"):
        load(llama, "meta")
