"""Before training: a model that reads its file or its tokens wrongly is stopped, and told why."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.config.compose import compose
from minimind_dpo.demo import HELD_OUT, MODEL, TOKENIZER
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.minimind.alternatives import alternatives, changed, open_fields
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.run.build import build_datamodule, build_policy, build_reference, build_tokenizer
from minimind_dpo.run.check_models import check_models
from minimind_dpo.training.model_check import check_model, likelihood, sample


@pytest.fixture(scope="module")
def policy() -> LoadedModel:
    return load_model(MODEL, TOKENIZER)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[TokenizedPair]:
    config = demo(str(tmp_path_factory.mktemp("cache")))
    data = build_datamodule(config, build_tokenizer(config), progress=False)
    data.prepare_data()
    assert data.train_store is not None
    return sample(data.train_store)


def demo(cache: str, *overrides: str):
    return compose(
        ["experiment=demo", f"data.train={HELD_OUT}", f"data.cache_dir={cache}", *overrides]
    )


def check(tmp_path: Path, *overrides: str) -> None:
    config = demo(str(tmp_path), *overrides)
    tokenizer = build_tokenizer(config)
    data = build_datamodule(config, tokenizer, progress=False)
    data.prepare_data()
    check_models(config, build_policy(config, tokenizer), build_reference(config), data)


def test_a_model_that_speaks_is_let_through_and_its_likelihood_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="minimind_dpo")
    check(tmp_path)
    (line,) = [m for m in caplog.messages if "gives" in m]
    assert line.startswith("The reference gives a chosen token -0.")
    # ln 1,280 = 7.1546
    assert line.endswith("nats on average (uniform: -7.15)")


def test_another_rotary_base_is_named_where_the_file_reads_better_with_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Set model\.config\.rope_theta=1000000\.0, or"):
        check(tmp_path, "model.config.rope_theta=1e4")


def test_a_reference_of_its_own_is_checked_too(tmp_path: Path, policy: LoadedModel) -> None:
    state = torch.load(MODEL, weights_only=True)
    torch.manual_seed(0)
    weights = {k: torch.randn_like(v.float()) * 0.02 for k, v in state.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, tmp_path / "random.pth")
    with pytest.raises(CheckpointError, match=r"reference\.path=.*no better than chance"):
        check(tmp_path, f"reference.path={tmp_path / 'random.pth'}")


def test_tokens_of_another_meaning_are_no_better_than_chance(
    policy: LoadedModel, pairs: list[TokenizedPair]
) -> None:
    other = np.random.default_rng(0).permutation(1280).astype(np.int32)
    renamed = [
        replace(
            p,
            **{
                side: other[getattr(p, side)]
                for side in ("prompt_ids", "chosen_ids", "rejected_ids")
            },
        )
        for p in pairs
    ]
    # Confident and wrong: far below the uniform distribution.
    assert likelihood(policy.model, renamed, "packed").mean < -10
    with pytest.raises(CheckpointError, match=r"in model\.tokenizer, or the settings.*guard") as e:
        check_model(
            policy.model, renamed, "packed", name="model.path=x", open_fields={"rope_theta": 1e6}
        )
    assert "model.config.rope_theta=1000000.0" in str(e.value)


def test_the_likelihood_is_the_mean_over_chosen_tokens_alone(
    policy: LoadedModel, pairs: list[TokenizedPair]
) -> None:
    total = 0.0
    for pair in pairs:
        ids = torch.from_numpy(np.concatenate([pair.prompt_ids, pair.chosen_ids])).long()
        with torch.no_grad():
            logits = load_plain(policy)(input_ids=ids[None]).logits[0]
        logps = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
        total += float(logps[-len(pair.chosen_ids) :].sum())
    found = likelihood(policy.model, pairs, "prefix_shared")
    assert found.mean == pytest.approx(total / sum(len(p.chosen_ids) for p in pairs), abs=1e-5)
    assert found.uniform == pytest.approx(-math.log(1280))


def load_plain(policy: LoadedModel):
    policy.model.set_attn_implementation("sdpa")
    return policy.model


def test_what_a_file_cannot_tell_has_other_readings() -> None:
    def dialect(name: str, **fields: object) -> Dialect:
        return Dialect(name, "", 0, None, {"rope_theta": 1e6, "num_attention_heads": 8, **fields})

    heads = [{"num_attention_heads": n} for n in (4, 16, 32)]
    thetas = [{"rope_theta": 1e4}, {"rope_theta": 1e5}]
    assert alternatives(dialect("v2")) == [*heads, *thetas]
    assert alternatives(dialect("v3")) == thetas  # its norms tell the size of a head
    assert alternatives(dialect("v1"))[0] == {"generation": "v2a"}
    experts = dialect("v3_moe", num_experts_per_tok=1, norm_topk_prob=True)
    assert alternatives(experts) == [
        *thetas,
        {"num_experts_per_tok": 2},
        {"num_experts_per_tok": 4},
        {"norm_topk_prob": False},
    ]
    assert alternatives(Dialect("hf", "", 0, None)) == []
    assert open_fields(dialect("v2")) == {"num_attention_heads": 8, "rope_theta": 1e6}


def test_a_change_replaces_what_was_set_under_any_name() -> None:
    v1 = Dialect("v1", "", 0, None, {"rope_theta": 1e4, "num_attention_heads": 16})
    overrides = {"n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    assert changed(v1, overrides, {"num_attention_heads": 8}) == {
        "norm_eps": 1e-5,
        "num_attention_heads": 8,
    }
