"""The model card of an export: data, settings, numbers, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Final

from minimind_dpo.config.schema import Config
from minimind_dpo.models.load import LoadedModel

_NUMBERS: Final = (
    *("loss", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected"),
)
_SETTINGS: Final = (
    *("loss.type", "loss.beta", "optim.lr", "schedule.name", "data.max_length", "model.lora.r"),
    *("trainer.precision", "seed"),
)
_WITH_A_SCRIPT: Final = ("v2", "v3")
"""Generations that MiniMind's present script for chatting, eval_llm.py, loads."""

_CARD: Final = """\
---
library_name: transformers
pipeline_tag: text-generation
{front}tags:
- dpo
- minimind-dpo
---

# {name}

`{base}`, aligned with Direct Preference Optimization by minimind-dpo {version}.
{recognised}.

## Data

{files}: {train} pairs were trained on, {val} were held out for validation.

## Training

{steps} optimizer steps; {seen} pairs were seen.

{settings}

## Numbers

{verdict}{numbers}

## Loading

{loading}

## Licence

None is named here: it follows from those of the model that was trained and of the data. Whoever
publishes this model names it, here and at the top of this file.
"""


def model_card(config: Config, policy: LoadedModel, summary: Mapping[str, Any]) -> str:
    """Text of the README.md of `export/`.

    Args:
        config: The run's configuration.
        policy: What was trained.
        summary: Content of `summary.json`, with what was exported.
    """
    base, data = _public(config.model.path), summary["data"]
    return _CARD.format(
        front=f"base_model: {base}\n" if base == policy.home else "",  # a name on the hub
        name=config.name,
        base=base,
        version=summary["versions"]["minimind_dpo"],
        recognised=policy.dialect.describe(),
        files=", ".join(f"`{file['name']}`" for file in data["train"]["files"]),
        train=data["train_pairs"],
        val=data["val_pairs"],
        steps=summary["steps"],
        seen=summary["pairs_seen"],
        settings=_settings(config),
        verdict=_verdict(summary),
        numbers=_numbers(summary),
        loading="\n\n".join(_ways_to_load(policy, [Path(name) for name in summary["exported"]])),
    )


def _public(path: str) -> str:
    """A hub's name as it is; of a path on this machine, the last part."""
    local = Path(path).expanduser()
    return local.absolute().name if local.exists() else path


def _settings(config: Config) -> str:
    values: dict[str, Any] = {key: reduce(getattr, key.split("."), config) for key in _SETTINGS}
    shown = {k: ", ".join(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
    rows = [f"| `{key}` | {value} |" for key, value in shown.items()]
    return "\n".join(["| Setting | Value |", "|---|---|", *rows])


def _verdict(summary: Mapping[str, Any]) -> str:
    """The verdict's sentence and its alarms, a paragraph each; nothing without a verdict."""
    verdict = summary.get("verdict")
    if not verdict:
        return ""
    against = f"Against the reference, {verdict['sentence']}."
    return "".join(f"{paragraph}\n\n" for paragraph in (against, *verdict["alarms"]))


def _numbers(summary: Mapping[str, Any]) -> str:
    before, after = summary["val_before"], summary["val"]
    if not after:
        return "There was no validation data."
    rows = [
        f"| {name} | {f'{before[name]:.4f}' if name in before else ''} | {after[name]:.4f} |"
        for name in _NUMBERS
        if name in after
    ]
    return "\n".join(
        [
            f"On the {summary['data']['val_pairs']} validation pairs; log-probs and margins (times "
            "beta) in nats an answer.",
            "",
            "| | before | after |",
            "|---|---:|---:|",
            *rows,
        ]
    )


def _ways_to_load(policy: LoadedModel, exported: list[Path]) -> list[str]:
    ways = []
    if any(path.name == "config.json" for path in exported):
        options = ", trust_remote_code=True" if policy.dialect.form is not None else ""
        registering = "import minimind_dpo.models.load  # tells transformers of the architecture\n"
        ways.append(
            "```python\n"
            f"{registering if policy.dialect.name == 'v_learn' else ''}"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{options})\n'
            f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{options})\n```'
        )
    generation, fields = policy.dialect.generation, policy.dialect.fields
    for path in exported:
        if path.suffix != ".pth" or generation is None:
            continue
        ways.append(f"`{path.name}` is the same model as MiniMind's own file, in half precision.")
        if generation.name in _WITH_A_SCRIPT:
            moe = " --use_moe 1" if policy.dialect.moe else ""
            ways[-1] += " In the folder `out` of MiniMind's repository, its script chats with it:"
            ways.append(
                "```bash\npython eval_llm.py --load_from model --weight dpo --hidden_size "
                f"{fields['hidden_size']} --num_hidden_layers {fields['num_hidden_layers']}{moe}\n"
                "```"
            )
    return ways
