"""Trace `trainer.fit` on an absent CUDA device: `python traced_fit.py REQUEST`, JSON in and out.

REQUEST is a list of {precision, accumulate}; the answer lists, for each, the waits of every
micro-batch of a run that logs steps 1, 5 and 6, by the optimizer step that it belongs to.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from absent_device import Trace, absent_cuda  # isort: skip

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from traced_steps import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.load import load_model  # noqa: F401  (makes v_learn known)
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.training.callbacks.progress import make_progress
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.callbacks.validation_schedule import ValidationSchedule
from minimind_dpo.training.lightning_seams import half_precision_plugin
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.resume.callback import ResumeCheckpoint
from minimind_dpo.training.resume.random_state import RandomState

DEMO = Path(__file__).parents[2] / "minimind_dpo/demo/assets"
STEPS, LOGGED = 6, 5


class NoLogps:
    """Stands for log-probs that lie in the cache: they come with the batch."""

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None: ...

    def score(self, batch: PreferenceBatch) -> PairLogps:
        zeros = torch.zeros(batch.target_id.numel(), device=batch.target_id.device)
        return PairLogps(zeros, batch.sequence_id, batch.lengths)


class WaitsOfSteps(Callback):
    """Waits by the optimizer step that is in progress; everything between two starts counts."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.steps: dict[int, list[str]] = {}
        self.step = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.note()
        self.step = trainer.global_step + 1

    def on_train_end(self, *_: Any) -> None:
        self.note()

    def note(self) -> None:
        blocking = [place for place in self.trace.uploads if place.what == "blocking"]
        waits = [f"{place.what} at {place.line}" for place in [*self.trace.waits, *blocking]]
        self.steps.setdefault(self.step, []).extend(waits)
        self.trace.clear()


def traced(asked: dict[str, Any], folder: Path) -> dict[int, list[str]]:
    """Waits by optimizer step."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "tokenizer")
    options = DataOptions(
        train=str(DEMO / "preferences.jsonl"),
        val_fraction=0.0,
        cache_dir=str(folder / "cache"),
        batch_size=4,
        num_workers=0,
        pin_memory=False,
        tokenize_workers=1,
    )
    data = PreferenceDataModule(tokenizer, options, progress=False)
    data.prepare_data()
    generation = GENERATIONS["v3"]
    with absent_cuda((9, 0)) as trace:
        with torch.device("cuda"):
            fields = dict(generation.defaults) | SMALL
            config = transformers_config(generation, False, fields, 0.0)
            model = AutoModelForCausalLM.from_config(config)
        use_planned_attention(model, True)
        module = DPOModule(
            model, NoLogps(), optimizer=OptimizerOptions(), schedule=ScheduleOptions("constant")
        )
        waits = WaitsOfSteps(trace)
        half = half_precision_plugin(asked["precision"], on_cuda=True)
        trainer = L.Trainer(
            accelerator="gpu",
            devices=1,
            precision=None if half else asked["precision"],
            plugins=half,
            max_steps=STEPS,
            accumulate_grad_batches=asked["accumulate"],
            gradient_clip_val=1.0,
            log_every_n_steps=LOGGED,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            logger=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(folder),
            callbacks=[
                waits,
                RandomState(0),
                make_progress("plain"),
                Throughput(),
                ValidationSchedule(1.0, None),
                ResumeCheckpoint(folder / "checkpoints", None),
            ],
        )
        trainer.fit(module, datamodule=data)
    return waits.steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        answers = [traced(asked, Path(folder)) for asked in json.loads(sys.argv[1])]
    print(json.dumps(answers))
