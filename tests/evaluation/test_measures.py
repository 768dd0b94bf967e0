"""Measures without a judge, against the same numbers by plain forward passes and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from training_support import VOCABULARY, made_up_pairs, tiny_model
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.form import language_of, repeated_share
from minimind_dpo.evaluation.measures import Facts, answer_kl, log_likelihoods, measure
from minimind_dpo.evaluation.pair_measures import measure_pairs
from minimind_dpo.evaluation.sampling import draw_answers
from minimind_dpo.evaluation.scoring import frozen, single
from minimind_dpo.models.attention.planned import plain_attention

LAYOUTS = ("prefix_shared", "packed", "padded")


def logps_of(model: PreTrainedModel, prompt: np.ndarray, completion: np.ndarray) -> Tensor:
    """(completion, V) log-probs by one plain forward."""
    ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
    with torch.no_grad(), plain_attention(model):
        logits = model(ids[None], use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def cases(count: int) -> tuple[list[Prompt], list[Answer]]:
    pairs = made_up_pairs(count)
    prompts = [Prompt(pair.prompt_ids, "") for pair in pairs]
    return prompts, [Answer("", pair.chosen_ids, True) for pair in pairs]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kl_of_an_answer_is_the_sum_of_each_token_s_exact_kl(layout: str) -> None:
    policy, reference = tiny_model(0, layout=layout), tiny_model(1, layout=layout)
    prompts, answers = cases(7)
    got = answer_kl(
        lambda: nullcontext(policy),
        lambda: nullcontext(reference),
        prompts,
        answers,
        Collator(layout, max_length=64),
        batch_tokens=60,  # several batches
    )
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        p, q = (logps_of(model, prompt.ids, answer.ids) for model in (policy, reference))
        expected.append(float((p.exp() * (p - q)).sum()))
    assert got == pytest.approx(expected, rel=1e-4)


def test_kl_to_itself_is_zero_and_the_mean_is_that_of_log_ratios_on_its_own_answers() -> None:
    policy, reference = tiny_model(0), tiny_model(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    prompt = Prompt(np.array([5, 6, 7], np.int32), "")
    prompts = [prompt] * 1500
    answers = draw_answers(
        policy, [[5, 6, 7]] * 1500, str, end_ids=[3], max_new_tokens=6, batch_size=1500
    )
    collate = Collator(max_length=64)

    def kl(of: PreTrainedModel, to: PreTrainedModel) -> np.ndarray:
        return answer_kl(
            lambda: nullcontext(of), lambda: nullcontext(to), prompts, answers, collate, 8000
        )

    assert np.abs(kl(policy, policy)).max() < 1e-6
    exact = kl(policy, reference)
    assert exact.min() > 0.0
    pairs = [single(p.ids, a.ids) for p, a in zip(prompts, answers, strict=True)]
    ours, theirs = (log_likelihoods(m, pairs, collate, 8000)[:, 0] for m in (policy, reference))
    ratio = ours - theirs
    error = ratio.std() / len(ratio) ** 0.5
    assert exact.mean() == pytest.approx(ratio.mean(), abs=3 * error)
    assert exact.std() < ratio.std() / 2  # what the inner expectation is for


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_likelihoods_are_those_of_plain_forwards(layout: str) -> None:
    model, pairs = tiny_model(layout=layout), made_up_pairs(6)
    got = log_likelihoods(model, pairs, Collator(layout, max_length=64), 50)
    for row, pair in zip(got, pairs, strict=True):
        for value, side in zip(row, (pair.chosen_ids, pair.rejected_ids), strict=True):
            logps = logps_of(model, pair.prompt_ids, side)
            expected = logps[torch.arange(len(side)), torch.from_numpy(side).long()].sum()
            assert value == pytest.approx(float(expected), abs=1e-4)


def test_a_single_completion_costs_no_token_more_where_prompts_are_shared() -> None:
    pair = single(np.arange(3, 9, dtype=np.int32), np.arange(9, 14, dtype=np.int32))
    assert Collator("prefix_shared")([pair]).num_tokens == 6 + 5 - 1


def test_measuring_leaves_modes_gradients_and_attention_as_they_were() -> None:
    model = tiny_model().train()
    model.model.layers[1].eval()
    before = model.config._attn_implementation
    log_likelihoods(model, made_up_pairs(3), Collator("packed", max_length=64), 500)
    assert (model.training, model.model.layers[0].training) == (True, True)
    assert not model.model.layers[1].training
    assert model.config._attn_implementation == before
    with frozen(model):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([1, 2, 3], 0.0),  # no 4-gram
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([1, 1, 1, 1, 1, 1, 1], 0.75),  # four 4-grams, all one
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # five, of which the last is the first
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(ids: list[int], share: float) -> None:
    assert repeated_share(ids) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("你好，请介绍一下你自己。", "zh"),
        ("用 Python 写一个 quicksort 函数", "zh"),
        ("Give me three tips for a good night's sleep.", "en"),
        ("The word 你 means you, and is written by everybody who learns Chinese.", "en"),
        ("Привет, как дела?", "other"),
        ("3 + 4 = 7", "other"),
    ],
)
def test_languages_are_told_by_script(text: str, language: str) -> None:
    assert language_of(text) == language


def some_answers(
    lengths: Sequence[int], ended: Sequence[bool], loops: bool = False
) -> list[Answer]:
    return [
        Answer("", np.ones(n, np.int32) if loops else np.arange(n, dtype=np.int32), end)
        for n, end in zip(lengths, ended, strict=True)
    ]


def test_costs_by_hand() -> None:
    policy = some_answers([8, 12, 16, 24], [True, True, True, False])
    reference = some_answers([10, 10, 10, 10], [True] * 4)
    nll = np.array([10.0, 20.0, 30.0])
    tokens = np.array([5.0, 5.0, 10.0])
    costs = measure(
        np.array([1.0, 2.0, 3.0, 6.0]), policy, reference, (nll + 2.0, nll, tokens), "prompts"
    )
    assert costs.kl.value == 3.0
    assert costs.kl_per_token.value == pytest.approx(12 / 60)  # 12 nats over 60 tokens
    assert (costs.length.policy, costs.length.reference) == (15.0, 10.0)
    assert costs.length.change.value == 1.5
    assert costs.ended.change.value == -0.25
    assert costs.perplexity is not None
    assert costs.perplexity.reference == pytest.approx(np.exp(60 / 20))
    assert costs.perplexity.change.value == pytest.approx(np.exp(6 / 20))
    assert asdict(costs)["length"]["change"]["n"] == 4
    looping = measure(
        np.ones(4), some_answers([8] * 4, [True] * 4, loops=True), reference, (nll, nll, tokens), ""
    )
    # Seven ones before the end: four 4-grams, three of which came before.
    assert looping.repetition.policy == 0.75


def test_facts_are_lost_where_the_reference_knew_them() -> None:
    facts = Facts.of(np.array([True, False, True, False]), np.array([True, True, False, False]))
    assert facts == Facts(known=2, lost=1, gained=1)


def pair_of(chosen: int, rejected: int, source: str, prompt: int = 0) -> TokenizedPair:
    """A pair of so many tokens; prompts whose number is even are Chinese."""
    return TokenizedPair(
        np.array([prompt], np.int32),
        np.zeros(chosen, np.int32),
        np.zeros(rejected, np.int32),
        index=0,
        source=source,
    )


def test_pair_measures_tell_language_source_and_length_apart() -> None:
    pairs = [
        pair_of(9, 3, "a.jsonl:1", 0),
        pair_of(9, 3, "a.jsonl:2", 1),
        pair_of(3, 9, "b.jsonl:1", 2),
        pair_of(3, 9, "b.jsonl:2", 3),
    ]
    reference = np.zeros((4, 2))
    policy = np.array([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.5, 0.5]])
    got = measure_pairs(pairs, policy, reference, lambda ids: "中文" if ids[0] % 2 == 0 else "text")
    assert got.all.accuracy.value == 0.625  # right, right, wrong, a tie
    assert got.all.margin.value == 0.5
    assert got.chosen.value == pytest.approx(0.625)
    assert got.by["language"]["zh"].margin.value == 0.5
    assert got.by["language"]["en"].accuracy.value == 0.75
    assert got.by["source"]["a.jsonl"].accuracy.value == 1.0
    assert got.by["length"]["chosen longer"].margin.value == 1.5
    assert got.by["length"]["rejected longer"].margin.value == -0.5
    # m = a + c x, x = tanh(1) or -tanh(1): a is the mean of the two groups' margins, 0.5.
    assert got.equal_length.margin.value == pytest.approx(0.5)
    assert asdict(got)["by"]["source"]["b.jsonl"]["accuracy"]["n"] == 2


def test_accuracy_that_is_length_alone_is_chance_at_equal_length() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 40, (400, 2))
    pairs = [pair_of(c, r, "a.jsonl:1", i) for i, (c, r) in enumerate(lengths.tolist())]
    # The policy likes long answers, and chosen ones are longer in two of three pairs.
    lengths.sort(axis=1)
    flip = random.random(400) < 2 / 3
    lengths[flip] = lengths[flip][:, ::-1]
    pairs = [pair_of(c, r, "a.jsonl:1", i) for i, (c, r) in enumerate(lengths.tolist())]
    margin = 0.2 * (lengths[:, 0] - lengths[:, 1]) + random.normal(0, 1.0, 400)
    policy = np.column_stack([margin, np.zeros(400)])
    got = measure_pairs(pairs, policy, np.zeros((400, 2)), lambda ids: "text")
    assert got.all.accuracy.low > 0.55
    assert 0.0 in got.equal_length.margin
    assert 0.5 in got.equal_length.accuracy


def test_answers_carry_their_tokens_their_text_and_whether_they_ended() -> None:
    model = tiny_model()
    prompts = [[4, 5], [6, 7, 8]]
    drawn = draw_answers(
        model,
        prompts,
        lambda ids: f"{len(ids)} tokens",
        end_ids=list(range(3, VOCABULARY)),
        max_new_tokens=5,
        seed=1,
    )
    assert [a.text for a in drawn] == [f"{len(a.ids)} tokens" for a in drawn]
    assert any(answer.ended for answer in drawn)
    cut = draw_answers(model, prompts, str, end_ids=[], max_new_tokens=5)
    assert [(len(a.ids), a.ended) for a in cut] == [(5, False), (5, False)]


def test_models_that_are_alike_draw_alike_and_close_ones_mostly() -> None:
    """The draws are shared, so a comparison sees what has changed and not chance."""
    prompts = [[4, 5, 6 + i % 20] for i in range(64)]

    def drawn(model: PreTrainedModel, seed: int = 0) -> list[list[int]]:
        answers = draw_answers(model, prompts, str, end_ids=[3], max_new_tokens=8, seed=seed)
        return [answer.ids.tolist() for answer in answers]

    first = drawn(tiny_model())
    assert drawn(tiny_model()) == first
    close = tiny_model()
    with torch.no_grad():
        for parameter in close.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    same = np.mean([a == b for a, b in zip(drawn(close), first, strict=True)])
    by_chance = np.mean([a == b for a, b in zip(drawn(tiny_model(), 1), first, strict=True)])
    assert same > 0.9 > 0.2 > by_chance
