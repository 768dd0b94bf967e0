"""Linear layers that multiply with the chosen library (`minimind_dpo.kernels.cpu_matmul`)."""

from __future__ import annotations

from torch import Tensor, nn

from minimind_dpo.kernels.cpu_matmul import chosen_library, linear


class ChosenLinear(nn.Linear):
    """`nn.Linear`, its products by the library that was chosen for this process."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return linear(input, self.weight, self.bias)


def use_chosen_library(model: nn.Module) -> int:
    """Let a model's plain linear layers multiply with the chosen library.

    Layers keep their parameters, names and hooks; only the class that runs them changes, so that
    saving, adapters and gradient checkpointing see what they always saw. Subclasses of `nn.Linear`
    are left alone: they do something of their own.

    Returns:
        How many layers were changed; 0 where torch's own library is the chosen one.
    """
    if chosen_library() == "torch":
        return 0
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    for module in plain:
        module.__class__ = ChosenLinear
    return len(plain)
