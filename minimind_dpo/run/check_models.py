"""Whether a run's models predict its chosen answers, before the reference runs over the data."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.minimind.alternatives import alternatives, changed, open_fields
from minimind_dpo.training.model_check import Other, check_model, sample
from minimind_dpo.training.reference import OnlineReference, PrecomputedReference, ReferenceScorer

log = logging.getLogger(__name__)


def check_models(
    config: Config, policy: LoadedModel, reference: ReferenceScorer, data: PreferenceDataModule
) -> None:
    """Refuse a policy or a reference that predicts the chosen answers no better than chance.

    Raises:
        CheckpointError: It does not, or another reading of the policy's file is much better.
    """
    assert data.train_store is not None
    pairs, layout = sample(data.train_store), config.data.layout
    others = [
        Other(change, partial(_read_otherwise, config, policy, change))
        for change in alternatives(policy.dialect)
    ]
    result = check_model(
        policy.model,
        pairs,
        layout,
        name=f"model.path={config.model.path}",
        open_fields=open_fields(policy.dialect),
        others=others,
    )
    separate = config.reference.path is not None
    who = "policy" if separate or config.reference.mode == "none" else "reference"
    log.info(f"The {who} gives {result}")
    scorers = OnlineReference | PrecomputedReference
    if separate and isinstance(reference, scorers) and reference.model is not None:
        name = f"reference.path={config.reference.path}"
        log.info(f"The reference gives {check_model(reference.model, pairs, layout, name=name)}")


def _read_otherwise(config: Config, policy: LoadedModel, change: dict[str, Any]) -> PreTrainedModel:
    overrides = changed(policy.dialect, config.model.config, change)
    return load_model(config.model.path, False, overrides, getattr(torch, config.model.dtype)).model
