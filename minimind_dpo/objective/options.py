"""What a user may set about the objective: one field for each key `loss.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from minimind_dpo.options.limits import (
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    Choices,
    Range,
    as_list,
    is_word,
)

OTHER_NAMES: Final = {"dpo": "sigmoid"}
"""Losses by the names of their papers."""


@dataclass
class LossOptions:
    """Which losses, and their coefficients. `conf/loss` says what each key means.

    `type` and `weights` become tuples; names are those of `LOSSES`.
    """

    type: Any = "sigmoid"
    weights: Any = None
    beta: Annotated[
        float, Range(0, open_low=True, advice=", since it scales every reward; 0.1 is usual")
    ] = 0.1
    label_smoothing: Annotated[
        float,
        Range(0, 0.5, open_high=True, advice=": with half of the labels wrong, nothing is left"),
    ] = 0.0
    f_divergence: Annotated[
        str, Choices("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    ] = "reverse_kl"
    f_alpha: Annotated[float, Range()] = 0.5
    ld_alpha: Annotated[float | None, Range(0, 1)] = None
    wpo: Annotated[bool, SWITCH] = False
    discopop_tau: Annotated[float, POSITIVE] = 0.05
    simpo_gamma: Annotated[float, NOT_NEGATIVE] = 0.5
    rpo_alpha: Annotated[float, NOT_NEGATIVE] = 0.0
    cpo_alpha: Annotated[float, NOT_NEGATIVE] = 1.0
    reduction: Annotated[str, Choices("sum", "mean", "padded_mean")] = "sum"
    aux_coef: Annotated[float | None, NOT_NEGATIVE] = None

    def __post_init__(self) -> None:
        names = as_list(self.type)
        self.type = tuple(OTHER_NAMES.get(name, name) if is_word(name) else name for name in names)
        self.weights = None if self.weights is None else tuple(as_list(self.weights))

    @property
    def type_weights(self) -> tuple[float, ...]:
        """One coefficient per type."""
        return (1.0,) * len(self.type) if self.weights is None else self.weights
