"""Evaluation samples from the policy, measures KL on those samples, and leaves no trace."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import Qwen3ForCausalLM

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo.evaluate import Answer, DemoScores, evaluate
from minimind_dpo.demo.report import before_after_table

PROMPTS = ["3加5等于多少？", "What is 3 plus 5?", "Thanks!"]


Demo = tuple[Qwen3ForCausalLM, Chat]


def test_kl_to_itself_is_zero_and_to_another_model_is_positive(toy_demo: Demo) -> None:
    model, chat = toy_demo
    other = Qwen3ForCausalLM(model.config).eval()
    assert evaluate(model, chat, PROMPTS, reference=model, max_new_tokens=6).kl == 0.0
    kl = evaluate(model, chat, PROMPTS, reference=other, max_new_tokens=6).kl
    assert kl is not None
    assert kl > 0
    assert evaluate(model, chat, PROMPTS, max_new_tokens=6).kl is None


def test_kl_of_one_token_answers_is_that_of_the_two_next_token_distributions(
    toy_demo: Demo,
) -> None:
    model, chat = toy_demo
    other = Qwen3ForCausalLM(model.config).eval()
    expected = []
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([chat.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, -1].double().log_softmax(-1) for m in (model, other))
        expected.append(float((p.exp() * (p - q)).sum()))
    kl = evaluate(model, chat, PROMPTS, reference=other, max_new_tokens=1).kl
    assert kl == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_modes_attention_and_random_state_are_as_before(toy_demo: Demo) -> None:
    model, chat = toy_demo
    model.train()
    model.model.layers[0].eval()
    model.set_attn_implementation("eager")
    before = torch.get_rng_state()
    evaluate(model, chat, PROMPTS, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == "eager"
    assert model.training
    assert not model.model.layers[0].training
    model.eval()
    model.set_attn_implementation("sdpa")


def test_the_same_seed_draws_the_same_answers_and_another_does_not(toy_demo: Demo) -> None:
    model, chat = toy_demo
    first, again, other = (
        evaluate(model, chat, PROMPTS, samples_per_prompt=2, seed=s, max_new_tokens=8)
        for s in (1, 1, 2)
    )
    assert [a.prompt for a in first.answers] == [p for p in PROMPTS for _ in range(2)]
    assert first == again
    assert first.answers != other.answers


def test_an_answer_cut_off_is_not_wanted(toy_demo: Demo) -> None:
    model, chat = toy_demo
    scores = evaluate(model, chat, PROMPTS, max_new_tokens=1)
    assert scores.mean_tokens == 1.0
    assert not any(a.wanted for a in scores.answers if not a.finished)


def test_no_prompts_and_unknown_prompts_are_refused(toy_demo: Demo) -> None:
    model, chat = toy_demo
    with pytest.raises(ValueError, match="got 0 prompts"):
        evaluate(model, chat, [])
    with pytest.raises(ValueError, match="does not know the prompt"):
        evaluate(model, chat, ["What is love?"])


def _scores(wanted: bool, kl: float) -> DemoScores:
    answers = (
        Answer("What is 3 plus 5?", "8.", True, wanted, True),
        Answer("Thanks!", "No problem.", True, wanted, False),
    )
    return DemoScores(float(wanted), 0.5, 7.0, kl, answers, preference_accuracy=0.5 + wanted / 2)


def test_the_table_shows_before_after_and_change() -> None:
    before, after = _scores(False, 0.0), _scores(True, 3.25)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(before_after_table(before, after))
    lines = console.export_text().splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.count("│") == 5}
    assert "0.0% ± 0.0 │ 100.0% ± 0.0 │ +100.0" in rows["answers in the wanted manner"]
    assert "50.0% ± 35.4 │" in rows["answers with right content"]
    assert "50.0% │" in rows["preference accuracy"]
    assert "3.25 │" in rows["KL to the reference, nats"]


def test_the_summary_is_plain_numbers() -> None:
    assert _scores(True, 3.25).numbers() == {
        "preference_accuracy": 1.0,
        "wanted_share": 1.0,
        "correct_share": 0.5,
        "kl": 3.25,
        "mean_answer_tokens": 7.0,
        "answers": 2,
    }
