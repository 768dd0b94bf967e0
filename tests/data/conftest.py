"""A tokenizer made on the spot, and files written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "Hello, how are you? I am fine, thanks. What is the capital of France? It is Paris.",
    "你好吗？我很好，谢谢！天空为什么是蓝色的？因为瑞利散射。",
    "user assistant system Be brief. Name a prime number: seven.",
)

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Build a byte-level BPE tokenizer of a few hundred tokens."""

    def make(
        chat_template: str | None = CHATML,
        specials: tuple[str, ...] = SPECIALS,
        eos: str = "<|im_end|>",
        plain_added: tuple[str, ...] = ("<think>", "</think>"),
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(CORPUS * 3, trainer)
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain_added])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=eos,
            pad_token=specials[0],
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a ChatML template."""
    return make_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write objects (as JSON) or texts, one a line, and return the file's path."""

    def write_lines(name: str, *lines: Any) -> str:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return str(path)

    return write_lines
