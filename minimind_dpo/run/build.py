"""From configuration to objects: tokenizer, data, models, module, trainer. Typed, one way down."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.kernels.cpu_matmul import use_chosen_library
from minimind_dpo.models.compile_layers import compile_layers
from minimind_dpo.models.load import LoadedModel, load_configured
from minimind_dpo.models.lora import add_adapters
from minimind_dpo.models.moe_balance import balance_loss, default_aux_coef
from minimind_dpo.models.tokenizers import need_tokenizer
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.folder import flat
from minimind_dpo.run.plan import RunPlan
from minimind_dpo.training.agreement import Agreement
from minimind_dpo.training.callbacks.notebook_report import MicroBatchReport
from minimind_dpo.training.callbacks.progress import make_progress
from minimind_dpo.training.callbacks.samples import SampledAnswers
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.callbacks.time_limit import TimeLimit
from minimind_dpo.training.callbacks.validation_schedule import ValidationSchedule
from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.distributed import make_strategy
from minimind_dpo.training.layout_check import check_layout
from minimind_dpo.training.lightning_seams import half_precision_plugin
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.nan_guard import StepGuard
from minimind_dpo.training.option_values import seconds
from minimind_dpo.training.reference import (
    AdapterOffReference,
    NoReference,
    OnlineReference,
    PrecomputedReference,
    ReferenceScorer,
)
from minimind_dpo.training.resume.callback import make_checkpoints
from minimind_dpo.training.resume.checkpoint_io import AtomicCheckpointIO
from minimind_dpo.training.resume.random_state import RandomState
from minimind_dpo.training.signals import StopRequest

log = logging.getLogger(__name__)

_OWN_TO_RANK = ("trainer.devices", "run_dir", "resume", "log_level")
"""Keys that ranks on different machines may give differently; the run itself is shared."""


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, without loading the policy.

    Raises:
        CheckpointError: None was named and none lies beside the model.
    """
    model = config.model
    return need_tokenizer(model.path, model.tokenizer, model.trust_remote_code)


def build_datamodule(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, progress: bool = True
) -> PreferenceDataModule:
    """The preference data, not yet read."""
    return PreferenceDataModule(tokenizer, config.data, seed=config.seed, progress=progress)


def build_policy(config: Config, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """The policy, ready to be scored in the configured layout."""
    loaded = load_configured(config.model, tokenizer, dropout=config.model.dropout)
    model = loaded.model
    _check_layout(config, model)
    if config.model.lora.r:
        add_adapters(model, config.model.lora)
    use_chosen_library(model)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.model.compile:
        compile_layers(model, Path(config.data.cache_dir).expanduser() / "compiled")
    return loaded


def _check_layout(config: Config, model: PreTrainedModel) -> None:
    noise, length = config.model.dropout > 0, config.data.max_length
    check_layout(model, config.data.layout, max_length=length, noise=noise)


def check_on_device(config: Config, policy: LoadedModel, trainer: L.Trainer) -> None:
    """Prove the layout where the run computes it: on its device, in its precision.

    Other kernels run there than on the CPU, where `build_policy` has proved it in full precision.

    Raises:
        CheckpointError: Log-probs are not the model's own there.
    """
    device, model = trainer.strategy.root_device, policy.model
    mixed = str(trainer.precision).endswith("-mixed")
    if device.type == "cpu" and not mixed:
        return
    torch.nn.Module.to(model, device)
    on_card = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    autocast = trainer.precision_plugin.forward_context() if mixed else contextlib.nullcontext()
    # Graphs of made-up pairs and of plain attention would be compiled for nothing.
    with on_card, autocast, torch.compiler.set_stance("force_eager"):
        _check_layout(config, model)
    if config.data.layout == "padded":
        log.info("Attention: transformers' own, since data.layout=padded")


def load_reference(config: Config) -> LoadedModel:
    """A model of its own as the reference: at its path, or the policy as it starts."""
    path, dtype = config.reference.path, config.reference.dtype
    loaded = load_configured(config.model, False, reference=path, dtype=dtype)
    use_chosen_library(loaded.model)
    return loaded


def build_reference(config: Config, *, progress: bool = True) -> ReferenceScorer:
    """The frozen reference; without a path of its own it is the policy as it starts."""
    reference = config.reference
    if reference.mode == "none":
        return NoReference()
    if reference.mode == "precomputed" and reference.path is None and reference.dtype is None:
        return PrecomputedReference(batch_tokens=reference.batch_tokens, progress=progress)
    if reference.mode == "online" and reference.path is None and config.model.lora.r:
        return AdapterOffReference()
    loaded = load_reference(config)
    if config.model.compile:  # as the policy: in half precision compiled layers round otherwise
        compile_layers(loaded.model, Path(config.data.cache_dir).expanduser() / "compiled")
    if reference.mode == "online":
        return OnlineReference(loaded.model)
    return PrecomputedReference(
        loaded.model, batch_tokens=reference.batch_tokens, progress=progress
    )


def build_module(
    config: Config, policy: LoadedModel, reference: ReferenceScorer, data: PreferenceDataModule
) -> DPOModule:
    """Policy, reference and objective as one module."""
    aux_coef = config.loss.aux_coef
    if aux_coef is None:
        aux_coef = default_aux_coef(policy.dialect, policy.model.config)
    return DPOModule(
        policy.model,
        reference,
        config.loss,
        optimizer=config.optim,
        schedule=config.schedule,
        aux_loss=balance_loss(policy.dialect, policy.model.config),
        aux_coef=aux_coef,
        guard=StepGuard(config.guard.max_bad_steps, data.source),
    )


def build_callbacks(
    config: Config,
    policy: LoadedModel,
    chat: Chat,
    run_dir: Path,
    extra: list[Callback],
    *,
    belongs: dict[str, Any],
    stop: StopRequest,
) -> list[Callback]:
    """What watches the run.

    Args:
        config: The configuration.
        policy: Loaded.
        chat: Encodes prompts as those of the training data.
        run_dir: The run's folder.
        extra: Made of `callbacks.extra`; what they hold is in each state that is saved.
        belongs: What checkpoints belong to.
        stop: What signal handlers set.
    """
    watching, trainer = config.callbacks, config.trainer
    settings = {key: value for key, value in flat(config).items() if key not in _OWN_TO_RANK}
    interval, accept = trainer.val_check_interval, config.resume_with_changes
    states = run_dir / "checkpoints"
    checkpoints = make_checkpoints(
        watching.checkpoint, states, belongs=belongs, stop=stop, accept_changes=accept
    )
    return [
        Agreement(settings),
        RandomState(config.seed),
        make_progress(watching.progress if trainer.enable_progress_bar else "none"),
        Throughput(),
        ValidationSchedule(1.0 if interval is None else interval, trainer.check_val_every_n_epoch),
        *_where_asked(config, policy, chat, run_dir, stop),
        *extra,
        *checkpoints,
    ]


def _where_asked(
    config: Config, policy: LoadedModel, chat: Chat, run_dir: Path, stop: StopRequest
) -> Iterator[Callback]:
    """Callbacks that a run may do without."""
    watching = config.callbacks
    samples, counted = watching.samples, watching.micro_batches
    if config.trainer.max_time is not None:
        yield TimeLimit(seconds(config.trainer.max_time))
    if watching.weights_changed:
        yield WeightsChanged()
    if samples.enabled:
        yield SampledAnswers(
            chat,
            samples.prompts,
            folder=run_dir,
            max_new_tokens=samples.max_new_tokens,
            temperature=samples.temperature,
            every=samples.every,
            seed=config.seed,
            stop=stop,
        )
    if counted.log_every or counted.export_every:
        yield MicroBatchReport(policy.dialect, run_dir, counted.log_every, counted.export_every)


def build_extra(key: str, entries: list[dict[str, Any]], kind: Any) -> list[Any]:
    """Make what a key lists.

    Args:
        key: `callbacks.extra`.
        entries: Its mappings, each with `_target_` and arguments.
        kind: Class that they have to be of.

    Raises:
        ConfigError: Naming every entry that is not importable, is given arguments that it does
            not take, or is something else.
    """
    made, wrong = [], []
    for place, entry in enumerate(entries):
        target = entry["_target_"]
        try:
            each = instantiate(entry, _convert_="all")
        except (InstantiationException, ImportError, ValueError) as error:
            cause = error.__cause__ or error
            why = f"cannot be made ({type(cause).__name__}: {' '.join(str(cause).split())})"
            wrong.append(Problem(f"{key}[{place}]", why, value=target))
            continue
        if isinstance(each, kind):
            made.append(each)
        else:
            why = f"makes a {type(each).__name__}, which is no {kind.__name__}"
            wrong.append(Problem(f"{key}[{place}]", why, value=target))
    if wrong:
        raise ConfigError(wrong)
    return made


def build_trainer(
    config: Config,
    plan: RunPlan,
    callbacks: list[Callback],
    loggers: list[Logger],
    run_dir: Path,
) -> L.Trainer:
    """Lightning's Trainer with the configured keywords."""
    keywords = dict(vars(config.trainer))
    keywords["enable_progress_bar"] = True  # ours; a silent one where none is wanted
    keywords["strategy"] = make_strategy(
        keywords["strategy"], plan.division.world_size, config.guard.rank_timeout
    )
    keywords |= {"log_every_n_steps": plan.log_every, "max_time": None}  # TimeLimit has it
    # ValidationSchedule has what was configured; it decides between optimizer steps.
    keywords |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    # The data module spreads pairs over ranks, and a whole validation runs at the start.
    keywords |= {"use_distributed_sampler": False, "num_sanity_val_steps": 0}
    keywords["plugins"] = [AtomicCheckpointIO()]
    on_cuda = keywords["accelerator"] in ("auto", "gpu", "cuda")
    if half := half_precision_plugin(keywords["precision"], on_cuda):
        keywords["plugins"].append(half)
        keywords["precision"] = None  # which the plugin says
    return L.Trainer(**keywords, callbacks=callbacks, logger=loggers, default_root_dir=str(run_dir))
