"""Losses, rewards and gradients against 1,034 cases computed by TRL's own trainer."""

from __future__ import annotations

import math
from typing import Any

import golden_support
import pytest
import torch
from torch import Tensor

from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.metrics import MetricSums, pair_metrics
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import LossOutput, pair_losses, preference_loss

Case = dict[str, Any]

# The gates of the reference numbers, relative.
GATES = {"float64": 1e-7, "float32": 3e-5}

# TRL reads label smoothing in exo_pair, robust, aot and aot_unpaired alone.
IGNORES_SMOOTHING = {"sigmoid", "sigmoid_norm"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return golden_support.numbers("trl/losses")


def numbers(values: Any, dtype: torch.dtype) -> Tensor:
    """A tensor of a list in which infinities and NaN are spelt out."""
    if isinstance(values, list):
        return torch.stack([numbers(value, dtype) for value in values])
    return torch.tensor(float(values), dtype=dtype)


def options_of(case: Case) -> LossOptions:
    smoothing = case["label_smoothing"]
    return LossOptions(
        type=tuple(case["loss_type"]),
        weights=None if case["loss_weights"] is None else tuple(case["loss_weights"]),
        beta=case["beta"],
        label_smoothing=0.0 if IGNORES_SMOOTHING & set(case["loss_type"]) else smoothing,
        f_divergence=case["f_divergence_type"],
        f_alpha=case["f_alpha_divergence_coef"],
        ld_alpha=case["ld_alpha"],
        wpo=case["use_weighting"],
        discopop_tau=case["discopop_tau"],
    )


def sequences(source: Case, model: str, dtype: torch.dtype, lengths: str) -> PairLogps:
    """Sequence log-probs, each as if it were one token, with the completions' real lengths."""
    values = numbers(source[f"{model}_chosen_logps"] + source[f"{model}_rejected_logps"], dtype)
    counts = source[f"chosen_{lengths}"] + source[f"rejected_{lengths}"]
    return PairLogps(values.requires_grad_(), torch.arange(len(values)), torch.tensor(counts))


def tokens(source: Case, model: str, dtype: torch.dtype) -> PairLogps:
    def flat(name: str) -> Tensor:
        rows = [*source[f"{model}_chosen_{name}"], *source[f"{model}_rejected_{name}"]]
        return torch.tensor([value for row in rows for value in row], dtype=dtype)

    counts = torch.tensor(source["chosen_scored_len"] + source["rejected_scored_len"])
    return PairLogps(
        flat("token_logps").requires_grad_(),
        torch.arange(len(counts)).repeat_interleave(counts),
        counts,
        log_sum_sq_probs=flat("token_log_sum_sq_probs") if model == "policy" else None,
    )


def run(case: Case, source: Case) -> tuple[PairLogps, PairLogps, LossOutput]:
    dtype = getattr(torch, case["dtype"])
    if case["group"] in ("ld_alpha", "wpo"):
        policy, reference = tokens(source, "policy", dtype), tokens(source, "ref", dtype)
    else:
        # TRL divides by a length that counts a first token which nothing predicts.
        lengths = "scored_len" if "sft" in case["loss_type"] else "len"
        policy = sequences(source, "policy", dtype, lengths)
        reference = sequences(source, "ref", dtype, lengths)
    return policy, reference, pair_losses(policy, reference, options_of(case))


def gate_of(case: Case, what: str) -> float:
    if case["loss_type"] == ["exo_pair"] and case["dtype"] == "float64":
        return 2e-6  # TRL takes the logarithm of label smoothing in float32, whatever the dtype.
    if case["loss_type"] == ["discopop"] and what.startswith("grad"):
        return max(GATES[case["dtype"]], 1e-4 if case["dtype"] == "float32" else 0.0)
    return GATES[case["dtype"]]


def assert_near(ours: Tensor, theirs: Any, case: Case, what: str) -> None:
    """Elementwise in float64; in float32 against the largest element, as sums cancel."""
    expected = numbers(theirs, torch.float64)
    gate, floor = gate_of(case, what), 1e-12
    if case["dtype"] == "float32":
        finite = expected[expected.isfinite()]
        floor = max(1e-8, gate * float(finite.abs().max()) if finite.numel() else 0.0)
    torch.testing.assert_close(
        ours.detach().double(),
        expected,
        rtol=gate,
        atol=floor,
        equal_nan=True,
        msg=lambda text: f"case {case['id']} {case['loss_type']} {case['input']} {what}: {text}",
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("group", "count"),
    [
        ("core", 450),
        ("f_divergence", 432),
        ("multi", 48),
        ("ld_alpha", 48),
        ("wpo", 32),
        ("discopop_tau", 24),
    ],
)
def test_losses_rewards_and_gradients_are_those_of_trl(golden, group, count, dtype):
    cases = [case for case in golden["cases"] if case["group"] == group]
    assert len(cases) == count
    for case in (case for case in cases if case["dtype"] == dtype):
        policy, _, output = run(case, golden["inputs"][case["input"]])
        assert output.losses.dtype == getattr(torch, dtype)
        assert_near(output.losses.mean(), case["loss"], case, "loss")
        # TRL spreads the token mean of sft evenly over the batch; here each pair has its own.
        if "sft" not in case["loss_type"] and case["per_example"] is not None:
            assert_near(output.losses, case["per_example"], case, "per_example")
        assert_near(output.chosen_rewards, case["chosen_rewards"], case, "chosen_rewards")
        assert_near(output.rejected_rewards, case["rejected_rewards"], case, "rejected_rewards")
        output.losses.mean().backward()
        assert_gradients(policy, case)


def assert_gradients(policy: PairLogps, case: Case) -> None:
    """Every token of a sequence has that sequence's gradient, so its first stands for it."""
    assert policy.token_logps.grad is not None
    rows = policy.token_logps.grad.split(torch.bincount(policy.sequence_id).tolist())
    chosen = torch.stack([row[0] for row in rows[: policy.num_pairs]])
    rejected = torch.stack([row[0] for row in rows[policy.num_pairs :]])
    if "grad_chosen_tokens" in case:
        first = [row[0] for row in case["grad_chosen_tokens"]]
        assert_near(chosen, first, case, "grad_chosen_tokens")
    else:
        assert_near(chosen, case["grad_chosen_logps"], case, "grad_chosen_logps")
    if case["grad_rejected_logps"] is not None:
        assert_near(rejected, case["grad_rejected_logps"], case, "grad_rejected_logps")
    if case["group"] == "ld_alpha":
        for row, expected in zip(rows, case["grad_chosen_tokens"], strict=False):
            assert_near(row, expected, case, "every token of chosen")


def test_gap_losses_from_sequence_logps_are_those_of_trl(golden):
    """The public function, on the cases that need no token."""
    cases = [c for c in golden["cases"] if c["group"] == "core" and c["dtype"] == "float64"]
    for case in cases:
        source, options = golden["inputs"][case["input"]], options_of(case)
        logps = [
            numbers(source[f"{model}_{side}_logps"], torch.float64)
            for model in ("policy", "ref")
            for side in ("chosen", "rejected")
        ]
        lengths = "scored_len" if case["loss_type"] == ["sft"] else "len"
        # TRL ignores a smoothing that a loss does not read; here it is refused.
        reads = all("label_smoothing" in LOSSES[name].uses for name in case["loss_type"])
        losses, chosen_rewards, rejected_rewards = preference_loss(
            *logps,
            type=case["loss_type"],
            beta=options.beta,
            label_smoothing=options.label_smoothing if reads else 0.0,
            chosen_lengths=torch.tensor(source[f"chosen_{lengths}"]),
            rejected_lengths=torch.tensor(source[f"rejected_{lengths}"]),
        )
        assert_near(losses.mean(), case["loss"], case, "loss")
        assert_near(chosen_rewards, case["chosen_rewards"], case, "chosen_rewards")
        assert_near(rejected_rewards, case["rejected_rewards"], case, "rejected_rewards")
    assert len(cases) == 360


def test_metrics_are_those_of_trl_but_for_ties_and_desensitised_sums(golden):
    seen = 0
    for case in (c for c in golden["cases"] if c["dtype"] == "float64"):
        policy, reference, output = run(case, golden["inputs"][case["input"]])
        sums = MetricSums()
        sums.add(pair_metrics(policy, reference, output))
        ours, theirs = sums.means(), dict(case["metrics"])
        # A tie is half right here and wrong in TRL.
        theirs["rewards/accuracies"] += ours["rewards/ties"] / 2
        if case["ld_alpha"] is not None:
            # TRL reports desensitised sums as log-probs; here log-probs are log-probs.
            theirs.pop("logps/chosen")
            theirs.pop("logps/rejected")
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-7, abs=1e-12), (case["id"], name)
        assert ours["loss"] == pytest.approx(float(case["loss"]), rel=1e-6, nan_ok=True)
        seen += 1
    assert seen == 618


def test_label_smoothing_makes_sigmoid_conservative_where_trl_ignores_it(golden):
    case = next(
        c
        for c in golden["cases"]
        if c["loss_type"] == ["sigmoid"] and c["label_smoothing"] == 0.1 and c["group"] == "core"
    )
    source = golden["inputs"][case["input"]]
    pairs = [sequences(source, model, torch.float64, "len") for model in ("policy", "ref")]
    plain, flipped = (
        pair_losses(*pairs, LossOptions(beta=case["beta"])).losses,
        case["beta"] * (pairs[0].sums - pairs[1].sums),
    )
    gap = flipped[:8] - flipped[8:]
    ours = pair_losses(*pairs, LossOptions(beta=case["beta"], label_smoothing=0.1)).losses
    assert_near(plain, case["per_example"], case, "per_example")
    # -0.9 log sigmoid(h) - 0.1 log sigmoid(-h) = -log sigmoid(h) + 0.1 h
    torch.testing.assert_close(ours, plain + 0.1 * gap, rtol=1e-12, atol=1e-12)


def test_lengths_count_scored_tokens_where_trl_counts_one_more_without_a_prompt(golden):
    case = next(
        c
        for c in golden["cases"]
        if c["loss_type"] == ["ipo"] and c["input"] == "no_prompt_311" and c["dtype"] == "float64"
    )
    source = golden["inputs"]["no_prompt_311"]
    assert [
        a - b for a, b in zip(source["chosen_len"], source["chosen_scored_len"], strict=True)
    ] == [1] * 8
    scored = [sequences(source, model, torch.float64, "scored_len") for model in ("policy", "ref")]
    ours = pair_losses(*scored, options_of(case)).losses.mean().item()
    assert not math.isclose(ours, case["loss"], rel_tol=1e-2)
