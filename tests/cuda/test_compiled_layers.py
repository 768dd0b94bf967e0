"""Decoder layers compile with the attention kernel inside, into a bounded number of graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.attention.varlen as varlen
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from training_support import made_up_pairs, tiny_model
from varlen_contract import by_contract

from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention import planned
from minimind_dpo.models.compile_layers import decoder_layers
from minimind_dpo.objective.logps import sequence_logps


@torch.library.custom_op("tests::varlen", mutates_args=())
def opaque_kernel(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int
) -> Tensor:
    """The kernel's contract as one operator, as on CUDA: a compiler sees its shapes alone."""
    return by_contract(q, k, v, q_offsets, k_offsets, max_q, max_k, None, (-1, 0))


@opaque_kernel.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(q)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The path of CUDA on a CPU: the kernel is the operator above, whatever the precision."""

    def kernel(*args: object, scale: object, window_size: object, **rest: object) -> Tensor:
        return opaque_kernel(*args)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(planned, "on_cuda", lambda tensor: True)
    monkeypatch.setattr(planned, "takes_varlen", lambda *args: True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module, counter: CompileCounter) -> None:
    for layer in decoder_layers(model):
        layer.compile(dynamic=True, fullgraph=True, backend=counter)


@pytest.mark.usefixtures("as_on_cuda")
def test_a_layer_is_one_graph_with_the_kernel_in_it_whatever_the_batch() -> None:
    """fullgraph=True raises at a break; batches of 1 to 40 pairs, both layouts of packed tokens."""
    plain, model, counter = tiny_model(), tiny_model(), CompileCounter()
    compiled(model, counter)
    graphs = []
    with torch.no_grad():
        for layout in ("prefix_shared", "packed"):
            for count in (2, 3, 5, 40, 1, 17):
                batch = Collator(layout, max_length=64)(made_up_pairs(count, seed=count))
                expected = sequence_logps(plain, batch).sums
                torch.testing.assert_close(sequence_logps(model, batch).sums, expected)
                graphs.append(counter.frame_count)
    assert graphs[-1] <= 4
    assert len(set(graphs[1:6])) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_inside_gradient_checkpointing_torch_compiles_nothing_so_the_pair_is_refused(
    checkpointing: bool,
) -> None:
    torch.compiler.reset()
    model, counter = tiny_model().train(), CompileCounter()
    for layer in decoder_layers(model):
        layer.compile(dynamic=True, backend=counter)
    if checkpointing:
        model.activation_checkpointing_enable()
    for count in (1, 3, 5):
        batch = Collator("prefix_shared", max_length=64)(made_up_pairs(count))
        sequence_logps(model, batch).sums.sum().backward()
    torch.compiler.reset()
    assert (counter.frame_count > 0) != checkpointing
