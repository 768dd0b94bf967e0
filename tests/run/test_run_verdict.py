"""A run's verdict: its reference, its text, its judges, and what becomes of it when things fail."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import composed
from training_support import tiny_model
from transformers import PreTrainedModel

from minimind_dpo.config.schema import Config
from minimind_dpo.evaluation import evaluate
from minimind_dpo.evaluation.evaluate import Evaluation
from minimind_dpo.models.lora import add_adapters, has_adapters
from minimind_dpo.models.options import LoraOptions
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.build import build_datamodule, build_policy, build_tokenizer
from minimind_dpo.run.evaluation import lending, read_text, reference_of
from minimind_dpo.run.verdict import GivenUpError, RunVerdict
from minimind_dpo.training.signals import StopRequest

PROMPT = torch.tensor([[5, 6, 7]])


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT).logits.clone()


def configured(folder: Path, *overrides: str) -> Config:
    return composed(["experiment=demo", f"data.cache_dir={folder / 'cache'}", *overrides])


def run_verdict(config: Config, folder: Path, stop: StopRequest | None = None) -> RunVerdict:
    tokenizer = build_tokenizer(config)
    data = build_datamodule(config, tokenizer, progress=False)
    data.setup("fit")
    return RunVerdict(config, build_policy(config, tokenizer), data, folder, stop or StopRequest())


def start(verdict: RunVerdict) -> None:
    verdict.on_fit_start(SimpleNamespace(is_global_zero=True), SimpleNamespace())  # type: ignore[arg-type]


def test_the_reference_of_adapters_is_the_policy_without_them() -> None:
    policy = tiny_model(layout="padded")
    start_logits = logits(policy)
    add_adapters(policy, LoraOptions(r=2, alpha=4.0))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    reference = reference_of(composed(["model.path=x"]), policy)
    assert has_adapters(policy)
    assert not torch.allclose(logits(policy), start_logits)
    with reference() as model:
        assert model is policy
        torch.testing.assert_close(logits(model), start_logits)
    assert not torch.allclose(logits(policy), start_logits)


def test_the_reference_is_what_training_began_with_whatever_the_policy_is_now(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path)
    policy = build_policy(config, build_tokenizer(config)).model
    with torch.no_grad():
        policy.set_attn_implementation("sdpa")
        start_logits = logits(policy)
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    reference = reference_of(config, policy)
    with reference() as model:
        torch.testing.assert_close(logits(model), start_logits)
    with reference() as again:
        assert again is model  # loaded once


@pytest.mark.parametrize("number", [1, 4, 500])
def test_prompts_are_distinct_held_out_and_the_same_for_every_run_seed(
    tmp_path: Path, number: int
) -> None:
    chosen = []
    for seed in (1, 2):
        config = configured(tmp_path, f"evaluate.prompts={number}", f"seed={seed}")
        verdict = run_verdict(config, tmp_path)
        start(verdict)
        evaluation = verdict._evaluation
        assert evaluation is not None
        chosen.append([prompt.source for prompt in evaluation.task.prompts])
        assert len({prompt.text for prompt in evaluation.task.prompts}) == min(number, 200)
    assert chosen[0] == chosen[1]
    assert all(source.startswith("heldout.jsonl:") for source in chosen[0])


def test_prompts_are_cut_to_what_the_model_has_positions_for(tmp_path: Path) -> None:
    """Learned positions end: prompt and answer, which are scored together, fit them."""
    config = configured(tmp_path, "evaluate.max_new_tokens=6", "evaluate.prompts=9")
    verdict = run_verdict(config, tmp_path)
    verdict.policy.model.config.max_position_embeddings = 16
    start(verdict)
    evaluation = verdict._evaluation
    assert evaluation is not None
    assert max(len(prompt.ids) for prompt in evaluation.task.prompts) == 16 - 6


def test_without_held_out_prompts_there_is_no_verdict_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path, "data.val=null", "data.val_fraction=0")
    verdict = run_verdict(config, tmp_path)
    with caplog.at_level(logging.INFO):
        start(verdict)
    assert "There will be no verdict: data.val and data.val_fraction hold out no prompt" in (
        caplog.text
    )
    assert verdict.conclude(3) is None


def test_held_out_prompts_may_be_split_off_the_training_file(tmp_path: Path) -> None:
    config = configured(tmp_path, "data.val=null", "evaluate.prompts=5")
    verdict = run_verdict(config, tmp_path)
    start(verdict)
    evaluation = verdict._evaluation
    assert evaluation is not None
    assert len(evaluation.task.pairs) == 32
    for prompt in evaluation.task.prompts:
        assert prompt.source.startswith("preferences.jsonl:")
        assert prompt.text


def test_the_text_of_perplexity_is_cut_into_stretches(tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("床前明月光，疑是地上霜。 " * 40, encoding="utf-8")
    config = configured(
        tmp_path, f"evaluate.text={file}", "evaluate.prompts=3", "data.max_length=32"
    )
    stretches = read_text(config, build_tokenizer(config))
    assert [len(ids) for ids in stretches] == [32, 32, 32]
    for content, why in ((b"\xff\xfe\x00", "is not UTF-8 text"), (b"", "holds no text")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"evaluate.text=.*{why}"):
            read_text(config, build_tokenizer(config))


def test_a_judge_that_does_not_know_the_prompts_is_refused_before_training(tmp_path: Path) -> None:
    val = tmp_path / "mine.jsonl"
    val.write_text('{"prompt": "What is love?", "chosen": "A word.", "rejected": "No."}\n')
    config = configured(tmp_path, f"data.val={val}", "judge=demo")
    with pytest.raises(ConfigError, match=r"judge.name=demo: knows the prompts .* mine.jsonl:1"):
        start(run_verdict(config, tmp_path))


def test_a_judge_that_fails_is_told_and_fails_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verdict = run_verdict(configured(tmp_path), tmp_path)

    class Broken:
        task = SimpleNamespace(prompts=[])

        def seconds_ahead(self, policy: Any) -> float:
            raise RuntimeError("the server is away")

    verdict._evaluation = Broken()  # type: ignore[assignment]
    assert verdict.conclude(3) is None
    assert "There is no verdict: the server is away" in caplog.text

    class Full(Broken):
        def seconds_ahead(self, policy: Any) -> float:
            raise OSError(errno.ENOSPC, "No space left on device")

    verdict._evaluation = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):  # which the export would meet as well
        verdict.conclude(3)


def test_a_verdict_while_training_is_given_up_when_the_run_is_to_stop(tmp_path: Path) -> None:
    stop = StopRequest()
    verdict = run_verdict(configured(tmp_path, "evaluate.every=1"), tmp_path, stop)
    with verdict._bar("Answers", 3, "prompts") as advance:
        advance(1)
        stop.signum = 15
        with pytest.raises(GivenUpError):
            advance(1)

    def evaluate(policy: Callable[[], Any]) -> None:
        raise GivenUpError

    verdict._evaluation = evaluate  # type: ignore[assignment]
    trainer = SimpleNamespace(global_step=1, loggers=[])
    verdict.on_train_batch_start(trainer, SimpleNamespace(), None, 0)  # type: ignore[arg-type]
    assert not (tmp_path / "frontier.jsonl").exists()


def test_time_told_ahead_grows_with_the_longest_answer_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock on which a start takes 0.1 s and a token 0.01 s."""
    monkeypatch.setattr(evaluate, "_seconds", lambda draw, tokens: 0.1 + 0.01 * tokens)
    seconds = []
    for longest in (8, 800):
        config = configured(tmp_path, f"evaluate.max_new_tokens={longest}", "evaluate.prompts=8")
        verdict = run_verdict(config, tmp_path)
        start(verdict)
        evaluation = verdict._evaluation
        assert isinstance(evaluation, Evaluation)
        seconds.append(evaluation.seconds_ahead(lending(verdict.policy.model)))
    # 792 tokens more, for both models: 2 x 792 x 0.01 s, and what they take to be scored.
    assert seconds[1] - seconds[0] > 2 * 792 * 0.01
