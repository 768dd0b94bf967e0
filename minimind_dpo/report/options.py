"""What a search over settings goes by: one field for each key `sweep.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from minimind_dpo.options.limits import POSITIVE, Choices

DIRECTIONS: Final = {"length_controlled": "maximize", "win_rate": "maximize", "loss": "minimize"}
"""Each objective, and which way is better."""


@dataclass
class SweepOptions:
    """What the jobs of a multirun are compared by where a search chooses the next ones.

    Attributes:
        objective: A win rate of the verdict, at equal length or as it is; or the validation loss,
            which compares runs of one beta and one loss alone.
        max_kl: Largest KL divergence to the reference in nats an answer with which a win rate
            counts; None for no bound.
    """

    objective: Annotated[str, Choices(*DIRECTIONS)] = "length_controlled"
    max_kl: Annotated[float | None, POSITIVE] = 10.0
