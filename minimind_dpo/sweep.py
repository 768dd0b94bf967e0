"""Jobs of a multirun."""

from __future__ import annotations

from omegaconf import DictConfig

from minimind_dpo.config import to_config


def run_job(cfg: DictConfig) -> float | None:
    """Train one job of a sweep and return its validation loss."""
    from minimind_dpo.fit import fit

    return fit(to_config(cfg)).get("val", {}).get("loss")
