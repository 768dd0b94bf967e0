"""Every preference loss by name, with what it understands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minimind_dpo.objective.losses import pairwise, pointwise, reference_free
from minimind_dpo.objective.losses.terms import PairTerms
from minimind_dpo.objective.options import LossOptions


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and what it understands.

    Attributes:
        function: (PairTerms, LossOptions) -> losses (P,).
        uses: What changes this loss, among `label_smoothing`, `f_divergence`, `margin`,
            `ld_alpha`, `wpo`, `reduction`, `rpo_alpha`, and coefficients of its own.
        reference: Whether it reads the reference.
        sorts: Whether it sorts over the batch, so that its values belong to no pair.
    """

    function: Callable[[PairTerms, LossOptions], Tensor]
    uses: frozenset[str] = frozenset()
    reference: bool = True
    sorts: bool = False

    def __call__(self, terms: PairTerms, options: LossOptions) -> Tensor:
        """Losses (P,)."""
        return self.function(terms, options)


_SMOOTH = frozenset({"label_smoothing"})
_SUMS = frozenset({"ld_alpha", "wpo", "reduction", "rpo_alpha"})
_MEANS = _SUMS - {"reduction"}
_GAP = frozenset({"f_divergence", "margin"})

LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(pairwise.sigmoid, _SUMS | _GAP | _SMOOTH),
    "hinge": Loss(pairwise.hinge, _SUMS | _GAP),
    "ipo": Loss(pairwise.ipo, _MEANS | _GAP),
    "exo_pair": Loss(pairwise.exo_pair, _SUMS | _GAP | _SMOOTH),
    "nca_pair": Loss(pointwise.nca_pair, _SUMS),
    "robust": Loss(pairwise.robust, _SUMS | _GAP | _SMOOTH),
    "bco_pair": Loss(pointwise.bco_pair, _SUMS),
    "sppo_hard": Loss(pointwise.sppo_hard, _SUMS),
    "aot": Loss(pairwise.aot, _SUMS - {"wpo"} | _SMOOTH, sorts=True),
    "aot_unpaired": Loss(pairwise.aot_unpaired, _SUMS - {"wpo"} | _SMOOTH, sorts=True),
    "apo_zero": Loss(pointwise.apo_zero, _SUMS),
    "apo_down": Loss(pointwise.apo_down, _SUMS),
    "discopop": Loss(pairwise.discopop, _SUMS | _GAP | {"discopop_tau"}),
    "sigmoid_norm": Loss(pairwise.sigmoid_norm, _MEANS | _GAP | _SMOOTH),
    "sft": Loss(reference_free.sft, reference=False),
    "simpo": Loss(
        reference_free.simpo, _SMOOTH | {"margin", "wpo", "simpo_gamma"}, reference=False
    ),
    "orpo": Loss(reference_free.orpo, frozenset({"wpo"}), reference=False),
    "cpo": Loss(
        reference_free.cpo,
        _SMOOTH | {"margin", "wpo", "ld_alpha", "reduction", "cpo_alpha"},
        reference=False,
    ),
}
