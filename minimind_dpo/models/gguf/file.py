"""Write a model as one GGUF file, and read it back before it takes its place.

What is one number to each row or less (norms, biases, the router of experts) stays float32, as
llama.cpp's own conversion has it. llama's rows of q and k are reordered within each head: it
rotates the pairs (0, 1), (2, 3), ... where transformers rotates halves.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.disk import replacing
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.gguf.architecture import architecture_of, head_size, metadata, rope_of
from minimind_dpo.models.gguf.vocabulary import Vocabulary, vocabulary_of
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.minimind.native_file import check_finite
from minimind_dpo.options.limits import is_number

_KINDS: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE_KINDS: Final = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def save_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    end_ids: Sequence[int] = (),
    name: str = "",
) -> Path:
    """Write a model and its tokenizer.

    Args:
        model: Without adapters; left as it is.
        tokenizer: Its tokenizer, with the chat template that it is asked with.
        path: The file to write; its folder is made.
        dtype: float32, float16 or bfloat16.
        end_ids: Tokens that end an answer.
        name: Of the model, for people.

    Returns:
        The path.

    Raises:
        CheckpointError: llama.cpp does not compute this model or has no tokenizer like its own, a
            weight is not finite in `dtype`, or what was written does not read back as it is.
    """
    architecture = architecture_of(model)
    embedding: Any = model.get_input_embeddings()
    vocabulary = vocabulary_of(tokenizer, embedding.weight.shape[0], end_ids)
    tensors = {key: _rounded(key, t, dtype) for key, t in _tensors(model, architecture)}
    check_finite(tensors, f"export to {path} as {_KINDS[dtype]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _write(temporary, architecture, tensors, model.config, vocabulary, name)
        _check_tensors(temporary, tensors)
        _check_by_transformers(temporary, model, dtype)
    return path


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as llama.cpp has them; a tied head is not there twice."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    (kind,) = (key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, model.config.num_hidden_layers)
    config: Any = model.config
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = key.rpartition(".")
        experts = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", key)
        if experts is not None:  # (experts, out, in), without a suffix
            layer, part = experts.groups()
            parts = {"down": tensor}
            if part == "gate_up":
                parts = dict(zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True))
            for each, weight in parts.items():
                yield f"blk.{layer}.ffn_{each}_exps.weight", weight
            continue
        name = names.get_name(stem)
        assert name is not None, key
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        head_count = heads.get(name.rpartition(".")[2])
        if architecture == "llama" and head_count:
            tensor = _interleaved(tensor, head_count, head_size(config))
        yield f"{name}.{suffix}", tensor


def _interleaved(weight: Tensor, heads: int, size: int) -> Tensor:
    """Rows of each head from (first half, second half) to pairs: (heads * size, in)."""
    halves = weight.reshape(heads, 2, size // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape)


def _rounded(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    small = tensor.dim() < 2 or key.endswith("ffn_gate_inp.weight")
    return tensor.detach().cpu().to(torch.float32 if small else dtype).contiguous()


def _write(
    path: Path,
    architecture: str,
    tensors: dict[str, Tensor],
    config: Any,
    vocabulary: Vocabulary,
    name: str,
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize

    writer = GGUFWriter(path, architecture)
    matrices = {_KINDS[tensor.dtype] for tensor in tensors.values() if tensor.dim() > 1}
    kind = next(iter(matrices - {"F32"}), "F32")
    writer.add_file_type(LlamaFileType[_FILE_KINDS[kind]])
    writer.add_name(name or architecture)
    for key, value in metadata(config, architecture).items():
        add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    _write_vocabulary(writer, vocabulary)
    for key, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            raw = GGMLQuantizationType.BF16
            writer.add_tensor(key, quantize(tensor.float().numpy(), raw), raw_dtype=raw)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for kind in ("bos", "eos", "eot", "pad"):
        token = getattr(vocabulary, kind)
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse a file whose tensors are others, bit for bit, than those that were to be written."""
    from gguf import GGUFReader, dequantize

    back = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if back.keys() != tensors.keys():
        raise _not_as_written(path, f"tensors {sorted(back.keys() ^ tensors.keys())[:3]}")
    for key, tensor in tensors.items():
        numbers = dequantize(back[key].data, back[key].tensor_type)
        if not np.array_equal(numbers.reshape(tensor.shape), tensor.float().numpy()):
            raise _not_as_written(path, f"tensor {key}")


def _check_by_transformers(path: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse a file that transformers' own reader takes for another model.

    Its settings are read for themselves: transformers 5 leaves out the head size of qwen3, so that
    a model that it makes by them may have other shapes. Weights that are equal in a model of the
    same configuration give equal logits.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    known = {"rope_theta": rope_of(model.config)["rope_theta"], **vars(model.config)}
    for key, value in load_gguf_checkpoint(path)["config"].items():
        expected: Any = known.get(key) if not key.endswith("token_id") else None
        if is_number(expected) and not math.isclose(value, expected, rel_tol=1e-6):
            raise _not_as_written(path, f"{key}={value}, which is {expected} in the model,")
    # Its progress bars are not quiet by themselves.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        back = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=copy.deepcopy(model.config), dtype="float32"
        )
    for key, tensor in back.state_dict().items():
        small = tensor.dim() < 2 or key.endswith("mlp.gate.weight")
        expected = model.state_dict()[key].cpu()
        if not torch.equal(tensor, expected.to(torch.float32 if small else dtype).float()):
            raise _not_as_written(path, f"transformers' {key}")


def _not_as_written(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was written, but {what} does not read back as it is; nothing is left of it. "
        "Install the version of the package gguf that constraints.txt names"
    )
