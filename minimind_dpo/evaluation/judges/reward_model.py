"""The judge `reward_model`: a Hugging Face sequence classifier with one label scores each answer.

The conversation goes through the classifier's own chat template with the answer as its last turn;
where its tokenizer has no template (encoders such as DeBERTa), prompt and answer are a pair of
texts. Its own code is never run, and its weights are read without running code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minimind_dpo.evaluation.answers import Answer, Bar, Prompt, alike
from minimind_dpo.evaluation.judges.judge import JudgeError, Trust, prefer
from minimind_dpo.evaluation.options import RewardModelOptions
from minimind_dpo.evaluation.text import Text
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.locate import locate
from minimind_dpo.options.problem import ConfigError, Problem

KEY: Final = "judge.reward_model.path"


class RewardModelJudge:
    """Loads the classifier when it is first asked; between, it is in the memory of the host.

    Args:
        options: Which one, and how it is run.
        device: Says where it is run.
        bar: Makes progress bars.
    """

    name = "reward_model"
    tokens_ahead = 0  # of a model whose size is not the policy's

    def __init__(
        self, options: RewardModelOptions, device: Callable[[], torch.device], bar: Bar
    ) -> None:
        self.options = options
        self.trust = Trust(
            Text(f"what {options.path} was trained to prefer", f"{options.path} 在训练中学到的偏好")
        )
        self._device = device
        self._bar = bar

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1 where the first has the higher score, -1 the second, 0 where both are alike.

        Raises:
            JudgeError: The classifier cannot be loaded or run.
        """
        answers = [*zip(prompts, first, strict=True), *zip(prompts, second, strict=True)]
        try:
            model, tokenizer = self._loaded
            model.to(self._device())  # type: ignore[arg-type]
            scores = self._scores(model, tokenizer, answers)
        except ConfigError as error:
            raise JudgeError(str(error.problems[0])) from error
        model.to("cpu")  # type: ignore[arg-type]
        ours, theirs = np.split(scores, 2)
        return prefer(ours, theirs, alike(first, second))

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load(str(self.options.path))

    def _scores(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        answers: Sequence[tuple[Prompt, Answer]],
    ) -> np.ndarray:
        """float64 (answers,); NaN where the classifier gives no number."""
        positions = (
            getattr(model.config, "max_position_embeddings", None) or self.options.max_length
        )
        longest = min(self.options.max_length, positions)
        encoded = [encode(tokenizer, prompt, answer, longest) for prompt, answer in answers]
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        scores = np.zeros(len(encoded))
        size = self.options.batch_size
        with self._bar("Judging", len(encoded), "answers") as advance, torch.inference_mode():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                batch = tokenizer.pad(
                    [encoded[row] for row in rows], padding_side="right", return_tensors="pt"
                ).to(model.device)
                scores[rows] = model(**batch).logits[:, 0].double().cpu().numpy()
                advance(len(rows))
        return np.where(np.isfinite(scores), scores, np.nan)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Answer, longest: int
) -> dict[str, Any]:
    """What the classifier reads of an answer, at most `longest` tokens of it.

    A conversation loses its beginning; of a pair of texts the longer one loses its end.

    Raises:
        ConfigError: The chat template fails on the conversation.
    """
    if tokenizer.chat_template is None:
        pair = prompt.conversation, answer.text
        return dict(tokenizer(*pair, truncation="longest_first", max_length=longest))
    question = {"role": "user", "content": prompt.turns}
    turns: list[Any] = [question] if isinstance(prompt.turns, str) else list(prompt.turns)
    turns.append({"role": "assistant", "content": answer.text})
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # templates raise what they like
        why = f"has a chat template that fails on the prompt at {prompt.source}: {error}"
        raise ConfigError([Problem(KEY, why)]) from error
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return {name: ids[-longest:] for name, ids in encoded.items()}


def load(
    path: str, device: Literal["cpu", "meta"] = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier in evaluation mode, and its tokenizer.

    Args:
        path: Folder or hub name.
        device: `meta` to look at it without its weights.

    Raises:
        ConfigError: It cannot be found or loaded, lacks weights, or has not one label.
    """
    try:
        source = locate(path, KEY)
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.num_labels != 1:
                why = f"has {config.num_labels} labels, but a score is one number"
                fix = "Give a classifier that was trained as a reward model (num_labels=1)."
                raise ConfigError([Problem(KEY, why, fix, path)])
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                # Half precision is slower than float32 on most CPUs.
                dtype="auto" if torch.cuda.is_available() else torch.float32,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                **({"device_map": "meta"} if device == "meta" else {}),
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except CheckpointError as error:
        raise ConfigError([Problem(KEY, str(error).rstrip("."))]) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        why = f"cannot be loaded: {' '.join(str(error).split()).rstrip('.')}"
        raise ConfigError([Problem(KEY, why, value=path)]) from error
    model, report = loaded
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:5])
        fix = "Without them its scores are chance; this may be a model that is no classifier."
        raise ConfigError([Problem(KEY, f"lacks the weights {names}", fix, path)])
    _agree_on_padding(model, tokenizer)
    return model.eval(), tokenizer


def _agree_on_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    # NOTE: decoders read the score at the last token that is not the configuration's padding.
    pad = model.config.pad_token_id
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
