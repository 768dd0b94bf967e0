"""The best states by a monitored metric, in a folder that may move."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """The best states by a monitored metric; remembers them by name, so that a run can move."""

    def state_dict(self) -> dict[str, Any]:
        """Lightning's own, without the folder."""
        state = super().state_dict()
        paths = {str(path): score for path, score in state["best_k_models"].items()}
        state["best_k_models"] = {os.path.basename(path): s for path, s in paths.items()}
        for name in ("best_model_path", "kth_best_model_path"):
            state[name] = os.path.basename(state[name])
        return {**state, "dirpath": None, "last_model_path": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Find the files again in this run's folder; those that are gone are forgotten."""
        folder = str(self.dirpath)

        def found(name: str) -> str:
            path = os.path.join(folder, name)
            return path if name and os.path.isfile(path) else ""

        kept = {found(name): s for name, s in state_dict["best_k_models"].items() if found(name)}
        state = {**state_dict, "dirpath": self.dirpath, "best_k_models": kept}
        for name in ("best_model_path", "kth_best_model_path"):
            state[name] = found(state_dict[name])
        if kept and not state["kth_best_model_path"]:
            worst = max if self.mode == "min" else min
            state["kth_best_model_path"] = worst(kept, key=lambda path: float(kept[path]))
            state["kth_value"] = kept[state["kth_best_model_path"]]
        super().load_state_dict(state)
