"""Lightning's own Trainer, with callbacks and loggers of your own, on the demo's data.

    python examples/own_trainer.py [steps]

`DPOModule` is a LightningModule and `PreferenceDataModule` a LightningDataModule; nothing of
`minimind_dpo.train` is needed. Its configuration, exact resume and exit codes are not here either.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from minimind_dpo import DPOModule, PreferenceDataModule, load_model
from minimind_dpo.data.options import DataOptions
from minimind_dpo.demo import HELD_OUT, MODEL, PREFERENCES, TOKENIZER
from minimind_dpo.models.export import save_hf
from minimind_dpo.training.options import OptimizerOptions
from minimind_dpo.training.reference import PrecomputedReference

FOLDER = Path("outputs/own_trainer")


class Told(Callback):
    """A callback of your own: every curve is in `trainer.callback_metrics`."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line a validation."""
        loss, accuracy, margin = (
            float(trainer.callback_metrics[f"val/{name}"])
            for name in ("loss", "rewards/accuracies", "rewards/margins")
        )
        print(f"step {trainer.global_step}: {loss=:.4f} {accuracy=:.4f} {margin=:.4f}")


def main(steps: int = 94) -> None:
    """Train, validate, export."""
    loaded = load_model(MODEL, TOKENIZER)  # a native file, a folder, or a hub name
    options = DataOptions(
        train=PREFERENCES,
        val=HELD_OUT,
        max_length=256,
        cache_dir=str(FOLDER / "cache"),
        batch_size=16,
        num_workers=0,
    )
    data = PreferenceDataModule(loaded.tokenizer, options)
    # The reference runs once, ahead of training; a second model, or None, would do as well.
    optimizer = OptimizerOptions(lr=2e-3, eps=0.01)  # of a real model: 5e-7 and the usual eps
    module = DPOModule(loaded.model, PrecomputedReference(), optimizer=optimizer)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=0.25,
        log_every_n_steps=10,
        use_distributed_sampler=False,  # batches are planned for all ranks already
        callbacks=[Told(), ModelCheckpoint(FOLDER / "best", monitor="val/loss")],
        logger=CSVLogger(FOLDER),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    print("exported to", save_hf(loaded.model, loaded.tokenizer, FOLDER / "export"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
