"""Sampling: right answers, and a training run that does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_support import Golden

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.evaluation import sampling
from minimind_dpo.evaluation.sampling import sample_answers, sample_completions, shared_tokens
from minimind_dpo.models.attention.planned import PLANNED, use_planned_attention
from minimind_dpo.models.load import LoadedModel, load_model

from .conftest import tiny_tokenizer

TURNS = [{"role": "user", "content": "w1 w2 w3"}]


def chat_of(loaded: LoadedModel) -> Chat:
    assert loaded.tokenizer is not None
    return Chat(loaded.tokenizer)


@pytest.fixture
def loaded(v2_file: Path) -> LoadedModel:
    return load_model(v2_file, tiny_tokenizer(40), {"num_attention_heads": 4})


def greedy(model: torch.nn.Module, prompt: list[int], length: int, ends: set[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["v_learn", "v1", "v2_moe", "v3", "v3_moe_top2"])
def test_greedy_answers_of_a_ragged_batch_are_those_of_each_prompt_alone(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    prompts = [g.input_ids[0, :3].tolist(), g.input_ids[1, :9].tolist(), [5]]
    got = sample_completions(model, prompts, end_ids=[], max_new_tokens=6, temperature=0)
    assert got == [greedy(model, prompt, 6, set()) for prompt in prompts]


@pytest.mark.parametrize("name", ["v_learn", "v1", "v2_moe", "v3", "v3_moe_top2"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_what_all_prompts_begin_with_runs_once_and_changes_no_answer(
    name: str,
    temperature: float,
    golden: Callable[[str], Golden],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nine tokens are shared; the rest of three prompts has 1, 4 and 2."""
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    first = g.input_ids[0, :9].tolist()
    prompts = [[*first, *rest] for rest in ([5], [6, 7, 8, 9], [7, 5])]
    plain = sample_completions(
        model, prompts, end_ids=[], max_new_tokens=6, temperature=temperature
    )
    monkeypatch.setattr(sampling, "FEWEST_SHARED", 9)
    inputs = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: inputs.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    shared = sample_completions(
        model, prompts, end_ids=[], max_new_tokens=6, temperature=temperature
    )
    hook.remove()
    assert shared == plain
    assert inputs == [(1, 9), (3, 4), *[(3, 1)] * 5]


def test_nothing_is_shared_where_a_layer_counts_columns(loaded: LoadedModel) -> None:
    prompts = [[*range(3, 39), 4], [*range(3, 39), 5]]
    assert shared_tokens(loaded.model, prompts) == 36
    assert shared_tokens(loaded.model, prompts[:1]) == 0
    assert shared_tokens(loaded.model, [prompt[-20:] for prompt in prompts]) == 0
    loaded.model.config.sliding_window = 8
    assert shared_tokens(loaded.model, prompts) == 0
    loaded.model.config.layer_types = ["full_attention", "full_attention"]
    assert shared_tokens(loaded.model, prompts) == 36
    loaded.model.config.layer_types = ["full_attention", "sliding_attention"]
    assert shared_tokens(loaded.model, prompts) == 0


def test_a_completion_stops_at_its_end_token(loaded: LoadedModel) -> None:
    first = greedy(loaded.model, [3, 4], 5, set())
    end = first[2]
    got = sample_completions(loaded.model, [[3, 4]], end_ids=[end], max_new_tokens=5, temperature=0)
    assert got == [first[: first.index(end) + 1]]


def test_training_is_not_disturbed(loaded: LoadedModel) -> None:
    model, chat = loaded.model.train(), chat_of(loaded)
    model.model.layers[1].eval()  # not every module is in the same mode
    use_planned_attention(model, True)
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    sample_answers(model, chat, [chat.encode_prompt(TURNS)], max_new_tokens=4, seed=3)
    assert torch.equal(torch.rand(4), expected)
    assert model.training
    assert not model.model.layers[1].training
    assert model.config._attn_implementation == PLANNED
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_seed_repeats_its_answers_and_another_gives_others(loaded: LoadedModel) -> None:
    chat = chat_of(loaded)

    def answers(seed: int) -> list[str]:
        prompts = [chat.encode_prompt(prompt) for prompt in (TURNS, "w4 w5", TURNS)]
        return sample_answers(
            loaded.model, chat, prompts, max_new_tokens=12, seed=seed, batch_size=2
        )

    assert answers(0) == answers(0)
    assert answers(0) != answers(1)
    assert not any("<|" in answer for answer in answers(0))


def test_answers_end_where_the_chat_or_the_model_ends_them(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[object] = []

    def spy(model: object, prompts: list[list[int]], **kwargs: object) -> list[list[int]]:
        ends.append(kwargs["end_ids"])
        return [[7, 2] for _ in prompts]

    monkeypatch.setattr("minimind_dpo.evaluation.sampling.sample_completions", spy)
    for own in (2, [5, 9], None):
        loaded.model.generation_config.eos_token_id = own
        assert sample_answers(loaded.model, chat_of(loaded), [[6], [7]]) == ["w2", "w2"]
    assert ends == [[2], [2, 5, 9], [2]]  # 2 is <|im_end|>


def test_prompt_and_answer_fit_the_models_positions(loaded: LoadedModel) -> None:
    """Of 8 positions an answer gets 4, and a prompt of 6 tokens is cut to its last 4."""
    loaded.model.config.max_position_embeddings = 8
    prompt = [3, 4, 5, 6, 7, 8]
    (got,) = sample_completions(loaded.model, [prompt], end_ids=[], temperature=0)
    assert got == greedy(loaded.model, prompt[-4:], 4, set())


def test_settings_of_the_model_do_not_leak_into_sampling(loaded: LoadedModel) -> None:
    plain = sample_completions(
        loaded.model, [[3, 4]], end_ids=[], max_new_tokens=8, temperature=1.0
    )
    settings = loaded.model.generation_config
    settings.top_k, settings.repetition_penalty, settings.do_sample = 1, 5.0, True
    again = sample_completions(
        loaded.model, [[3, 4]], end_ids=[], max_new_tokens=8, temperature=1.0
    )
    assert plain == again


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"top_p": 0.0}, "top_p=0.0 above 0"),
        ({"max_new_tokens": 0}, "must be 1 or more"),
        ({"batch_size": 0}, "must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(
    loaded: LoadedModel, setting: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        sample_completions(loaded.model, [[3]], end_ids=[], **setting)


def test_an_empty_prompt_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"prompt\(s\) 1 have no tokens"):
        sample_completions(loaded.model, [[3], []], end_ids=[])


def test_an_id_beyond_the_embedding_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 holds token id 40, but .* 40 rows"):
        sample_completions(loaded.model, [[3], [40]], end_ids=[])
