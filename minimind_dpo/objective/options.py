"""What a user may set about the objective: plain values, one per config key `loss.*`."""

from __future__ import annotations

from dataclasses import dataclass

REDUCTIONS = ("sum", "mean", "padded_mean")
"""How token log-probs become a sequence log-prob: DPO's sum, per token, per padded position."""


@dataclass(frozen=True, slots=True)
class LossOptions:
    """Which losses, and their coefficients. Values are checked by `validation.problems`.

    Attributes:
        type: Names in `LOSSES`; several are summed with `weights`.
        weights: One coefficient per type; None weighs each by 1.
        beta: Strength of the pull towards the reference; rewards are beta times log-ratios.
            In ORPO it is the weight lambda of the odds-ratio term.
        label_smoothing: Share of pairs taken to be labelled the wrong way round, in [0, 0.5).
        f_divergence: Name in `DIVERGENCES`; DPO's own is `reverse_kl`.
        f_alpha: Exponent of `alpha_divergence`: 1 is reverse_kl, 0 is forward_kl.
        ld_alpha: Weight in [0, 1] of tokens beyond the length that both sides share (LD-DPO);
            None leaves sums as they are.
        wpo: Weigh each pair by how likely the policy itself would write it (WPO).
        discopop_tau: Temperature of DiscoPOP's blend.
        simpo_gamma: SimPO's target margin gamma, in nats of reward. The paper has 0.3 to 1.6 with
            beta 2 to 2.5.
        cpo_alpha: Weight of CPO's likelihood term, 1 in the paper.
        rpo_alpha: Weight of a likelihood term on chosen, added to a DPO loss (RPO); 0 for none.
        reduction: One of `REDUCTIONS`.
    """

    type: tuple[str, ...] = ("sigmoid",)
    weights: tuple[float, ...] | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence: str = "reverse_kl"
    f_alpha: float = 0.5
    ld_alpha: float | None = None
    wpo: bool = False
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5
    cpo_alpha: float = 1.0
    rpo_alpha: float = 0.0
    reduction: str = "sum"

    @property
    def type_weights(self) -> tuple[float, ...]:
        """One coefficient per type."""
        return (1.0,) * len(self.type) if self.weights is None else self.weights
