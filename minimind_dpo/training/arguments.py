"""What `DPOModule` is given that it cannot train, told with what to give instead."""

from __future__ import annotations

from typing import Any

import torch

from minimind_dpo.batch import PreferenceBatch


def check_models(policy: Any, reference: Any) -> None:
    """Say what to do where a model is named, wrapped, or given twice."""
    if reference is not None and reference is policy:
        raise ValueError(
            "policy and reference are one object, so that freezing the reference would freeze the "
            "policy: pass copy.deepcopy(policy), or PrecomputedReference(), which runs the policy "
            "once as it starts"
        )
    for name, model in (("policy", policy), ("reference", reference)):
        scores = name == "reference" and (model is None or hasattr(model, "score"))
        if not (scores or isinstance(model, torch.nn.Module)):
            raise TypeError(
                f"the {name} has to be a model, not {type(model).__name__}: for a path or a hub "
                "name pass load_model(NAME).model, or AutoModelForCausalLM.from_pretrained(NAME)"
            )


def check_batch(batch: Any) -> None:
    """Say how batches are made where the loader gives something else."""
    if not isinstance(batch, PreferenceBatch):
        raise TypeError(
            f"the loader gave {type(batch).__name__}, but DPOModule takes a PreferenceBatch: use "
            "PreferenceDataModule, or a DataLoader of TokenizedPair with collate_fn=Collator() "
            "(minimind_dpo.data.batches.layouts)"
        )
