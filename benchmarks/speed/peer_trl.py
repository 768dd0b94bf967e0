"""TRL's DPOTrainer on the same tokens, at the settings that make it fastest here.

No gradient checkpointing (on by default), its fused head, fused AdamW, rectangles as wide as their
longest row, flash attention where its package is there, no metric logged but at the first step.
`padding_free` is not available in this release. The trainer's own loop is timed, from the end of
its first step to the end of its last. Its tokenising is replaced by the pairs as they are, so that
both train on the same tokens.

`split`: a step's pairs go through in several forward passes and their gradients are accumulated,
the same step with less padding: what suits a CPU best.
"""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from speed.clock import Clock
from speed.request import Request, Skipped
from speed.ways import CLIP, FirstStep, Run, load
from speed.workload import open_store

MISSING = (
    "trl cannot be imported ({error}): pip install 'minimind-dpo[bench]', or give --trl-path FOLDER"
)


def trl(
    request: Request, clock: Clock, reference: str, split: bool = False, liger: bool = False
) -> Run:
    """Run it, the reference `online`, or computed ahead `cold` or `warm`."""
    micro = request.micro_batch if split else request.batch_size
    if liger and importlib.util.find_spec("liger_kernel") is None:
        raise Skipped("liger-kernel is not installed: pip install liger-kernel")
    try:
        import datasets
        from transformers import AutoTokenizer, TrainerCallback
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise Skipped(MISSING.format(error=error)) from error

    warmup = len(request.warmup) + len(request.rows) - len(request.timed)

    class Timed(TrainerCallback):
        """Starts the clock behind the first step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1 + request.untimed:
                clock.start()
            elif state.global_step == state.max_steps:
                clock.stop("steps")

    class Trainer(DPOTrainer):
        """Takes pairs as tokens, batches as planned; times the pass; keeps the first loss."""

        first_loss: float | None = None

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            score = super()._precompute_ref_logps
            before = score(dataset.select(range(warmup)), name, batch_size)
            rest = dataset.select(range(warmup, len(dataset)))
            if reference == "cold":
                clock.start()
            after = score(rest, name, batch_size)
            if reference == "cold":
                clock.stop("pass")
            return datasets.concatenate_datasets([before, after])

        def get_train_dataloader(self) -> Any:
            loader = DataLoader(
                self.train_dataset,
                batch_sampler=micro_batches(request, micro),
                collate_fn=self.data_collator,
                pin_memory=request.device == "cuda",
            )
            return self.accelerator.prepare(loader)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            if self.first_loss is None:
                self.first_loss = float(loss.detach())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_attending(request),
            ref_model=_attending(request) if reference == "online" else None,
            args=DPOConfig(
                **_options(request, folder, reference != "online", micro), use_liger_kernel=liger
            ),
            train_dataset=datasets.Dataset.from_dict(_columns(request)),
            processing_class=AutoTokenizer.from_pretrained(request.tokenizer),
            callbacks=[Timed()],
        )
        trainer.train()
    norm = next(log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log)
    assert trainer.first_loss is not None
    return Run(FirstStep(trainer.first_loss, float(norm)), trainer.model)


def _attending(request: Request) -> PreTrainedModel:
    """The model with the fastest attention there is: flash attention's own package on a GPU.

    Else torch's, whose cuDNN plans are off for every way.
    """
    model = load(request)
    flash = importlib.util.find_spec("flash_attn") is not None
    if request.device == "cuda" and request.precision != "float32" and flash:
        model.set_attn_implementation("flash_attention_2")
    return model


def _options(request: Request, folder: str, ahead: bool, micro: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": request.batch_size // micro,
        "precompute_ref_log_probs": ahead,
        "precompute_ref_batch_size": 4 * micro if request.device == "cuda" else None,
        "beta": request.beta,
        "max_length": request.max_length,
        "learning_rate": request.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "num_train_epochs": 1,
        "gradient_checkpointing": False,
        "torch_compile": request.compiled,
        "bf16": request.precision == "bfloat16",
        "fp16": request.precision == "float16",
        "use_cpu": request.device == "cpu",
        "dataloader_pin_memory": request.device == "cuda",
        "train_sampling_strategy": "sequential",
        "logging_first_step": True,
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": request.seed,
    }


def _columns(request: Request) -> dict[str, list[list[int]]]:
    store = open_store(request.store)
    pairs = [store[row] for row in [*request.warmup, *request.rows]]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {name: [getattr(pair, name).tolist() for pair in pairs] for name in names}


def micro_batches(request: Request, micro: int) -> list[list[int]]:
    """Positions in the data of each forward pass: the first step's, then the timed ones'.

    The first step may have fewer pairs than a step has passes; its pairs then go round, one a
    pass, which gives the same mean.
    """
    parts = request.batch_size // micro
    batches: list[list[int]] = []
    start = 0
    for rows in [request.warmup, *request.batches]:
        positions = list(range(start, start + len(rows)))
        start += len(rows)
        if len(rows) < parts:
            batches += [[positions[i % len(rows)]] for i in range(parts)]
        else:
            size = len(rows) // parts
            batches += [positions[i * size : (i + 1) * size] for i in range(parts)]
    return batches
