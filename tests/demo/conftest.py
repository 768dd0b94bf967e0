"""The demo at toy scale, and the shipped one, as models that `transformers` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo import ASSETS, TOKENIZER
from tools.demo.make import make
from tools.demo.sft import Recipe, new_model

TOY = Recipe(
    vocab_size=400, hidden_size=32, num_layers=1, epochs=1, batch_size=1024, pairs=40, held_out=16
)


Demo = tuple[Qwen3ForCausalLM, Chat]


def load_native(folder: Path, recipe: Recipe) -> Demo:
    """Strictly load `full_sft_<width>.pth` and the chat of a folder that `make` wrote."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    state = torch.load(folder / f"full_sft_{recipe.hidden_size}.pth", weights_only=True)
    model = new_model(recipe, tokenizer)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval(), Chat(tokenizer)


@pytest.fixture(scope="session")
def toy() -> Recipe:
    return TOY


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    torch.set_num_threads(1)
    make(folder, TOY)
    return folder


@pytest.fixture
def toy_demo() -> Demo:
    """An untrained model of toy size, with the tokenizer of the demo."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return new_model(TOY, tokenizer).eval(), Chat(tokenizer)


@pytest.fixture
def shipped_demo() -> Demo:
    return load_native(ASSETS, Recipe())
