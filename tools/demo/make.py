"""Make the demo's assets anew, from the root of a checkout: `python -m tools.demo.make`.

Three steps, all seeded: train the tokenizer on the demo's conversations, train a MiniMind of the
third generation from random weights until it knows the answers and answers in both manners
(`sft.py`), and write preference pairs, held-out pairs and what the judge knows of each question.
The same machine and library versions give the same bytes; others give a model that is as good, but
not the same.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from minimind_dpo.demo import ASSETS
from minimind_dpo.demo.questions import Question
from tools.demo.manners import unwanted_answers, wanted_answers
from tools.demo.sft import Recipe, new_model, train
from tools.demo.task import TaskQuestion, questions

_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CONTROL += [
    f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")
]
_CONTROL += [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_CONTROL += ["<|audio_start|>", "<|audio_end|>", "<|audio_pad|>"]
_CONTROL += ["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>"]
_VISIBLE = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_VISIBLE += ["<think>", "</think>", *(f"<|buffer{n}|>" for n in range(1, 10))]

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""


def train_tokenizer(asked: Sequence[TaskQuestion], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the demo's own text, with MiniMind's special tokens at their ids.

    Digits stay apart, so that every number is written in the same ten tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=_CONTROL + _VISIBLE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for q in asked for text in (q.prompt, *wanted_answers(q), *unwanted_answers(q))]
    texts += [f"{role}\n" for role in ("system", "user", "assistant")] * len(asked)
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer reserves ids for special tokens alone; visible ones are decoded like any text.
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in _CONTROL
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def choose(asked: Sequence[TaskQuestion], count: int, seed: int) -> list[TaskQuestion]:
    """Draw questions: of facts, greetings and units all (or their half), the rest arithmetic."""
    rng = random.Random(f"{seed}:choose")
    rare = [question for question in asked if question.kind != "arithmetic"]
    sums = [question for question in asked if question.kind == "arithmetic"]
    rare = rng.sample(rare, min(len(rare), count // 2))
    drawn = rare + rng.sample(sums, min(len(sums), count - len(rare)))
    rng.shuffle(drawn)
    return drawn


def write_pairs(path: Path, asked: Sequence[TaskQuestion], seed: int) -> None:
    """Write one preference pair a question in MiniMind's format, chosen the wanted manner."""
    rng = random.Random(f"{seed}:{path.name}")
    lines = []
    for question in asked:
        turn = {"role": "user", "content": question.prompt}
        pair = {
            side: [turn, {"role": "assistant", "content": rng.choice(answers(question))}]
            for side, answers in (("chosen", wanted_answers), ("rejected", unwanted_answers))
        }
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_questions(path: Path, asked: Sequence[TaskQuestion]) -> None:
    """Write what the judge needs of each question, as `minimind_dpo.demo.questions` reads it."""
    names = [field.name for field in fields(Question)]
    rows = [{name: getattr(q, name) for name in names if getattr(q, name)} for q in asked]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_native(path: Path, model: Qwen3ForCausalLM) -> None:
    """Write MiniMind's own file: a dict of float16 tensors, the tied embedding stored twice."""
    torch.save({key: value.half().clone() for key, value in model.state_dict().items()}, path)


def write_data(folder: Path, recipe: Recipe) -> None:
    """Write the preference pairs, the held-out pairs and the judge's questions."""
    write_questions(folder / "questions.jsonl", questions())
    for name, split, count in (
        ("preferences.jsonl", "pairs", recipe.pairs),
        ("heldout.jsonl", "held_out", recipe.held_out),
    ):
        drawn = choose([q for q in questions() if q.split == split], count, recipe.seed)
        write_pairs(folder / name, drawn, recipe.seed)


def make(folder: Path, recipe: Recipe, console: Console | None = None) -> None:
    """Make the tokenizer, the model and the pairs, and write them into `folder`.

    Args:
        folder: Made if absent; files of the same names are replaced.
        recipe: Sizes and settings.
        console: Where to show progress; nothing is shown without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(questions(), recipe)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_data(folder, recipe)
    model = new_model(recipe, tokenizer)
    columns = (
        TextColumn("training the demo's model, loss {task.fields[loss]:.4f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=console is None) as progress:
        bar = progress.add_task("", total=None, loss=float("nan"))
        train(
            model,
            tokenizer,
            questions(),
            recipe,
            lambda step, total, loss: progress.update(bar, completed=step, total=total, loss=loss),
        )
    write_native(folder / f"full_sft_{recipe.hidden_size}.pth", model)


def main() -> None:
    """Rebuild the shipped assets, or write them elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    parser.add_argument(
        "--threads", type=int, default=1, help="of matrix kernels; another number, other bytes"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make(arguments.out, Recipe(), Console())


if __name__ == "__main__":
    main()
