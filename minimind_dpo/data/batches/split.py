"""Which pairs validate: a share of the prompts, chosen by their hash.

The order of prompts is that of a mixed hash, so it is the same for any tokenizer, machine and
order of lines, and all pairs of a prompt fall on one side.
"""

from __future__ import annotations

import numpy as np

from minimind_dpo.data.store.token_store import TokenStore

_SHARE, _LEAST, _MOST = 0.02, 32, 1000


def split_indices(
    store: TokenStore, fraction: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split a store's rows into those to train on and those to validate on.

    Args:
        store: The pairs.
        fraction: Share to validate on, in [0, 1). None for 2%, at least 32 and at most 1,000
            pairs, but never more than a fifth of all.

    Returns:
        Rows to train on and rows to validate on, each int64 and ascending. Prompts are taken
        whole: validation gets the target or slightly less, and nothing where one prompt is all.
    """
    total = len(store)
    if fraction is None:
        target = min(max(round(_SHARE * total), _LEAST), _MOST, total // 5)
    else:
        target = min(round(fraction * total), total - 1)
    prompts, group_of, sizes = np.unique(
        _mix(np.asarray(store.prompt_hash, np.uint64)), return_inverse=True, return_counts=True
    )
    in_val = np.zeros(len(prompts), bool)
    room = target
    for group, size in enumerate(sizes.tolist()):
        if room == 0:
            break
        if size <= room:
            in_val[group] = True
            room -= size
    validates = in_val[group_of]
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64, so that order tells nothing of how the hash was made."""
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
