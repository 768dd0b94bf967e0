"""The demo's judge compares with the policy as it started, in a run that goes on as well."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning as L
import pytest
from training_support import loader, made_up_pairs, quiet_trainer
from transformers import Qwen3ForCausalLM

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo import callback
from minimind_dpo.demo.callback import DemoJudge
from minimind_dpo.demo.evaluate import evaluate
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions

PROMPTS = ["3加5等于多少？", "Thanks!"]


def fit(judge: DemoJudge, steps: int, resumed: Path | None = None) -> L.Trainer:
    policy, reference = judge.policy, copy.deepcopy(judge.policy)
    for model in (policy, reference):
        use_planned_attention(model, True)
    module = DPOModule(policy, reference, optimizer=OptimizerOptions(lr=1e-2))
    trainer = quiet_trainer(max_steps=steps, max_epochs=9, callbacks=[judge])
    trainer.fit(module, loader(made_up_pairs(8), 4), ckpt_path=resumed, weights_only=True)
    return trainer


def test_a_resumed_run_is_compared_with_its_start(
    toy_demo: tuple[Qwen3ForCausalLM, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, chat = toy_demo
    monkeypatch.setattr(callback, "held_out_prompts", lambda: PROMPTS)
    state = tmp_path / "state.ckpt"
    fit(DemoJudge(copy.deepcopy(start), chat, seed=3), 2).save_checkpoint(state)

    judge = DemoJudge(copy.deepcopy(start), chat, seed=3)
    fit(judge, 4, state)
    accuracy = "rewards/accuracies"
    scores = judge.conclude({accuracy: 0.5}, {accuracy: 0.75})
    expected = evaluate(start, chat, PROMPTS, reference=start, seed=3).numbers()
    assert scores["before"] == {**expected, "preference_accuracy": 0.5, "kl": 0.0}
    assert scores["after"]["kl"] > 0.01
    assert scores["after"]["preference_accuracy"] == 0.75
