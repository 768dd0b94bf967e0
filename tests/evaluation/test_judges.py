"""Judges: what they prefer, what they ignore, and when they say that they cannot judge."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from golden_support import Golden
from training_support import made_up_pairs, tiny_model

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.bradley_terry import fit
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.judges.pairs import Ground, PairsJudge, mean_states
from minimind_dpo.evaluation.judges.program import ProgramJudge
from minimind_dpo.evaluation.measures import answer_kl
from minimind_dpo.evaluation.scoring import frozen
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.models.load import load_model

from .planted import silent

WORD = 7


def taught_pairs(count: int, seed: int) -> list[TokenizedPair]:
    """Pairs whose chosen side says one word again and again; which is longer is chance."""
    return [
        TokenizedPair(
            pair.prompt_ids,
            np.where(np.arange(len(pair.chosen_ids)) % 2, pair.chosen_ids, WORD).astype(np.int32),
            np.where(pair.rejected_ids == WORD, WORD + 1, pair.rejected_ids).astype(np.int32),
            index=pair.index,
            source=pair.source,
        )
        for pair in made_up_pairs(count, seed)
    ]


def pairs_judge(
    train: list[TokenizedPair], test: list[TokenizedPair], layout: str = "prefix_shared"
) -> PairsJudge:
    model = tiny_model(layout=layout)
    collate = Collator(layout, max_length=64)
    return PairsJudge(Ground(lambda: nullcontext(model), train, test, collate, 400, 64, silent))


def answer(*ids: int, ended: bool = True, text: str = "") -> Answer:
    return Answer(text, np.array(ids, np.int32), ended)


def test_the_judge_learns_what_the_pairs_prefer_and_says_how_often_it_is_right() -> None:
    judge = pairs_judge(taught_pairs(160, 0), taught_pairs(60, 1))
    accuracy = judge.trust.accuracy
    assert accuracy is not None
    assert accuracy.n == 60
    assert accuracy.low > 0.75
    assert judge.trust.can_judge
    prompts = [Prompt(np.array([3, 4, 5], np.int32), "") for _ in range(3)]
    taught, other = answer(WORD, 9, WORD, 11, WORD, 13), answer(20, 9, 21, 11, 22, 13)
    got = judge.compare(prompts, [taught, other, taught], [other, taught, taught])
    assert got.tolist() == [1.0, -1.0, 0.0]


def test_the_judge_of_pairs_without_a_preference_says_that_it_cannot_judge() -> None:
    judge = pairs_judge(made_up_pairs(160, 0), made_up_pairs(60, 1))
    accuracy = judge.trust.accuracy
    assert accuracy is not None
    assert accuracy.low <= 0.5
    assert not judge.trust.can_judge


def test_too_few_pairs_are_no_judge() -> None:
    few = pairs_judge(taught_pairs(3, 0), taught_pairs(60, 1))
    assert few.trust.unable == "3 training pairs are too few to fit it on"
    prompt = Prompt(np.array([3], np.int32), "")
    assert np.isnan(few.compare([prompt], [answer(5)], [answer(6)])).all()
    untested = pairs_judge(taught_pairs(20, 0), [])
    assert untested.trust.unable == "there is no held-out pair to test it on"
    assert not untested.trust.can_judge


def test_every_layout_gives_the_judge_the_same_features() -> None:
    pairs, means = made_up_pairs(9), []
    for layout in ("prefix_shared", "packed", "padded"):
        model = tiny_model(layout=layout, dtype=torch.float64)
        with frozen(model):
            means.append(mean_states(model, Collator(layout, max_length=64)(pairs)))
    assert means[0].shape == (18, 64)  # two layers of width 32
    torch.testing.assert_close(means[0], means[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(means[0], means[2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["v_learn", "v1", "v2_moe", "v3", "v3_moe_top2"])
def test_every_generation_shows_the_judge_its_layers(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    pairs = made_up_pairs(5)
    with frozen(model):
        shared, plain = (
            mean_states(model, Collator(layout, max_length=64)(pairs))
            for layout in ("prefix_shared", "padded")
        )
    assert shared.shape == (10, 2 * model.config.hidden_size)
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    kl = answer_kl(
        lambda: nullcontext(model),
        lambda: nullcontext(model),
        [Prompt(pair.prompt_ids, "") for pair in pairs],
        [Answer("", pair.chosen_ids, True) for pair in pairs],
        Collator(max_length=64),
        500,
    )
    assert np.abs(kl).max() < 1e-6


@pytest.mark.parametrize(("layers", "read"), [(1, [1]), (2, [1, 2]), (4, [2, 3]), (8, [3, 5])])
def test_features_of_an_answer_are_the_states_that_predict_its_tokens(
    layers: int, read: list[int]
) -> None:
    """Of the layers at a quarter and at half of the depth, counted from 1; no other is run."""
    pair = made_up_pairs(1)[0]
    model = tiny_model(layers=layers)
    states: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, arguments, output: states.append(output))
    with frozen(model):
        got = mean_states(model, Collator(max_length=64)([pair]))
        assert len(states) == read[-1]
        states.clear()
        ids = torch.from_numpy(np.concatenate([pair.prompt_ids, pair.chosen_ids[:-1]])).long()
        model.set_attn_implementation("sdpa")
        model(ids[None])
    means = [states[place - 1][0, len(pair.prompt_ids) - 1 :].mean(0) for place in read]
    torch.testing.assert_close(got[0], torch.cat(means), atol=1e-5, rtol=1e-4)


def test_pairs_are_cut_to_what_is_judged() -> None:
    """The end of a prompt and the beginning of each answer; the rest changes nothing."""
    pairs, model = taught_pairs(20, 0), tiny_model()
    judge = PairsJudge(
        Ground(lambda: nullcontext(model), pairs, pairs, Collator(max_length=64), 400, 5, silent)
    )
    ends = [
        TokenizedPair(p.prompt_ids[-5:], p.chosen_ids[:5], p.rejected_ids[:5], index=0)
        for p in pairs
    ]
    assert max(len(pair.chosen_ids) for pair in pairs) > 5
    for got, expected in zip(judge._differences(pairs), judge._differences(ends), strict=True):
        np.testing.assert_array_equal(got, expected)
    tokens = [len(ids) for p in ends for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids)]
    assert judge.tokens_ahead == 2 * sum(tokens)


def planted(n: int, seed: int, likes: float) -> tuple[np.ndarray, np.ndarray]:
    """Features: a direction that chosen answers go in, one that grows with length, and noise."""
    random = np.random.default_rng(seed)
    length = random.normal(0.4, 0.4, n)  # chosen answers are longer, as they often are
    signal = likes + random.normal(size=n)
    noise = random.normal(size=(n, 6))
    return np.column_stack([signal, 3.0 * length + 0.5 * random.normal(size=n), noise]), length


def test_length_is_regressed_out_of_bradley_terry() -> None:
    """Chosen answers are longer; without regression, the feature of length would decide."""
    difference, length = planted(3000, 0, likes=1.5)
    model = fit(difference, length, np.arange(3000))
    same = np.zeros((1, 8))
    longer = same.copy()
    longer[0, 1] = 3.0  # what a length ratio of e does to the feature of length
    assert model.prefer(longer, np.array([1.0]))[0] == pytest.approx(0.0, abs=0.15)
    wanted = same.copy()
    wanted[0, 0] = 1.0
    assert model.prefer(wanted, np.array([0.0]))[0] > 0.5
    test_difference, test_length = planted(800, 1, likes=1.5)
    preferred = model.prefer(test_difference, test_length)
    assert abs(np.corrcoef(preferred, test_length)[0, 1]) < 0.1
    assert (preferred > 0).mean() > 0.9


def test_bradley_terry_finds_the_planted_weights_and_a_strong_ridge_where_there_are_none() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3))
    wins = random.random(4000) < 1 / (1 + np.exp(-(x @ [1.0, -0.5, 0.0])))
    model = fit(np.where(wins[:, None], x, -x), np.zeros(4000), np.arange(4000))
    assert model.weights / model.scale == pytest.approx([1.0, -0.5, 0.0], abs=0.12)
    nothing = fit(random.normal(size=(60, 30)), np.zeros(60), np.arange(60))
    assert nothing.ridge >= 10.0
    assert np.abs(nothing.weights).max() < 0.5


def test_swapping_the_answers_flips_the_preference() -> None:
    difference, length = planted(100, 2, likes=1.0)
    model = fit(difference, length, np.arange(100))
    assert model.prefer(-difference, -length) == pytest.approx(-model.prefer(difference, length))


def test_a_program_prefers_wanted_answers_and_an_answer_that_was_cut_is_never_wanted() -> None:
    judge = ProgramJudge("demo", "manners", lambda prompt, text: "please" in text)
    prompts = [Prompt(np.array([1], np.int32), "")] * 4
    polite, curt = answer(1, text="please"), answer(1, text="no")
    cut = answer(1, text="please", ended=False)
    got = judge.compare(prompts, [polite, curt, polite, cut], [curt, polite, polite, curt])
    assert got.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert judge.trust.can_judge
    assert judge.facts(prompts, [polite] * 4) is None


@pytest.mark.parametrize(("low", "can"), [(0.51, True), (0.5, False), (0.2, False)])
def test_a_judge_whose_interval_touches_one_half_cannot_judge(low: float, can: bool) -> None:
    assert Trust("x", Estimate(0.6, low, 0.8, 100)).can_judge is can
