"""Adapters, compiled layers, checkpointed activations and the check at load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import loader, made_up_pairs, quiet_trainer, tiny_model
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.kernels.cpu_matmul import choose_library, use_chosen_library
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.lora import adapters_off, add_adapters, save_and_merge_adapters
from minimind_dpo.models.options import LoraOptions
from minimind_dpo.objective.logps import sequence_logps
from minimind_dpo.run.out_of_memory import is_out_of_memory, memory_advice
from minimind_dpo.training.layout_check import check_layout
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions
from minimind_dpo.training.reference import AdapterOffReference
from minimind_dpo.training.reference_key import weights_fingerprint

BATCH = Collator("prefix_shared", max_length=64)(made_up_pairs(4))


def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
    model.zero_grad()
    sequence_logps(model, BATCH).sums.sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_checkpointed_activations_give_the_same_gradients() -> None:
    model = tiny_model().train()
    expected = gradients(model)
    model.activation_checkpointing_enable()
    for got, gradient in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, gradient)


def test_the_check_at_load_accepts_what_scores_right_in_every_layout() -> None:
    for layout in ("prefix_shared", "packed", "padded"):
        check_layout(tiny_model(layout=layout), layout)


def test_a_state_space_model_is_recognised_and_told_to_use_padded() -> None:
    config = MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(CheckpointError, match=r"Use data\.layout=padded"):
        check_layout(model, "prefix_shared")


def test_a_model_that_scores_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **kw: type("Out", (), {"logits": plain(**kw).logits * 1.5})
    )
    with pytest.raises(CheckpointError, match="differ from the model's own by up to"):
        check_layout(model, "packed")


def test_fresh_adapters_change_nothing_and_train_alone() -> None:
    model = tiny_model()
    expected, fingerprint = sequence_logps(model, BATCH).sums.detach(), weights_fingerprint(model)
    add_adapters(model, LoraOptions(r=4, alpha=8))
    assert torch.equal(sequence_logps(model, BATCH).sums, expected)
    assert weights_fingerprint(model) == fingerprint
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_with_adapters_the_reference_is_the_model_with_them_off(tmp_path: Path) -> None:
    model, start = tiny_model(), tiny_model()
    add_adapters(model, LoraOptions(r=4, alpha=8))
    module = DPOModule(model, AdapterOffReference(), optimizer=OptimizerOptions(lr=1e-2))
    trainer = quiet_trainer()
    trainer.fit(module, loader(made_up_pairs(16), 4))
    assert trainer.logger.steps[1]["train/loss"] == pytest.approx(np.log(2), abs=1e-6)  # type: ignore[union-attr]
    assert trainer.logger.steps[4]["train/loss"] != pytest.approx(np.log(2), abs=1e-4)  # type: ignore[union-attr]
    model.eval()
    expected = sequence_logps(start.eval(), BATCH).sums
    with adapters_off(model):
        torch.testing.assert_close(sequence_logps(model, BATCH).sums, expected)

    trained = sequence_logps(model, BATCH).sums.detach()
    save_and_merge_adapters(model, None, tmp_path / "adapters", base=None)
    assert set(model.state_dict()) == set(start.state_dict())
    torch.testing.assert_close(sequence_logps(model, BATCH).sums, trained, atol=1e-4, rtol=1e-5)
    start.load_adapter(str(tmp_path / "adapters"))
    use_planned_attention(start, True)
    torch.testing.assert_close(sequence_logps(start, BATCH).sums, trained, atol=1e-4, rtol=1e-5)


def test_adapters_on_a_layer_that_is_not_there_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"model\.lora\.target_modules=no_such_layer"):
        add_adapters(tiny_model(), LoraOptions(r=4, alpha=8, target_modules="no_such_layer"))


def test_running_out_of_memory_names_the_knobs_most_helpful_first() -> None:
    from minimind_dpo.config.compose import compose

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("something else"))
    advice = memory_advice(compose(["experiment=hf", "model.path=x", "data.train=y.jsonl"]))
    assert "data.batch_size=4 trainer.accumulate_grad_batches=8" in advice
    assert "bf16-mixed" not in advice  # in use already
    assert advice.index("data.batch_size") < advice.index("model.lora.r=16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own
@pytest.mark.parametrize("library", ["torch", "onednn"])
def test_compiled_layers_give_the_same_numbers_and_compile_once_for_a_range_of_sizes(
    library: str,
) -> None:
    from torch._dynamo.utils import counters

    from minimind_dpo.models.compile_layers import compile_layers

    if library == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    torch.compiler.reset()
    counters.clear()
    plain, compiled = tiny_model(), tiny_model()
    choose_library(library)
    assert use_chosen_library(compiled) == (0 if library == "torch" else 15)
    assert compile_layers(compiled) == 2
    graphs = []
    # Inductor sums more than 4,096 rows in another way: tokens, or tokens times heads.
    for count in (2, 3, 5, 7, 80, 160, 320, 4, 60, 90, 110, 180, 220, 330, 400):
        batch = Collator("prefix_shared", max_length=64)(made_up_pairs(count, seed=count))
        expected, got = (sequence_logps(model, batch).sums for model in (plain, compiled))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-5)
        for sums in (expected, got):
            sums.mean().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs[:4])) == 1
    assert graphs[6] <= 4 * graphs[0]
    assert len(set(graphs[6:])) == 1
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)
