"""The types of every configuration key: one dataclass a group, no defaults.

Defaults and the meaning of each key are in `conf/*.yaml`, once. Structured configs know neither
`Literal` nor unions: such keys are `Any` or `str` here and `minimind_dpo.config.check` checks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints


@dataclass
class LoraConfig:
    """Low-rank adapters; r = 0 trains every weight."""

    r: int
    alpha: float
    dropout: float
    target_modules: Any  # str | list[str]


@dataclass
class ModelConfig:
    """The policy: where it is, and how it is loaded and run."""

    path: str
    tokenizer: str | None
    dtype: str
    dropout: float
    gradient_checkpointing: bool
    compile: bool
    matmul_precision: str
    matmul_library: str
    trust_remote_code: bool
    lora: LoraConfig
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Preference pairs: files, lengths, batches, loading."""

    train: Any  # list[str] after `to_config`
    val: Any  # list[str] after `to_config`, empty for a split of train
    val_fraction: float | None
    layout: str
    pad_to_max_length: bool
    batch_size: int
    max_tokens_per_batch: int | None
    max_length: int
    max_prompt_length: int | None
    max_completion_length: int | None
    chat_template: str
    empty_think: str
    on_error: str
    shuffle: bool
    drop_last: bool
    num_workers: int
    pin_memory: bool | None
    cache_dir: str
    tokenize_workers: int | None


@dataclass
class LossConfig:
    """The objective; mirrors `minimind_dpo.objective.preference_loss.LossOptions`."""

    type: Any  # list[str] after `to_config`
    weights: Any  # list[float] | None after `to_config`
    beta: float
    label_smoothing: float
    f_divergence: str
    f_alpha: float
    ld_alpha: float | None
    wpo: bool
    discopop_tau: float
    simpo_gamma: float
    rpo_alpha: float
    cpo_alpha: float
    reduction: str
    aux_coef: float | None


@dataclass
class OptimConfig:
    """AdamW."""

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float
    decay_all: bool
    fused: Any  # "auto" | bool


@dataclass
class ScheduleConfig:
    """Learning rate over optimizer steps."""

    name: str
    warmup_steps: int
    warmup_ratio: float
    min_lr_ratio: float


@dataclass
class ReferenceConfig:
    """The frozen reference and how its log-probs are had."""

    path: str | None
    mode: str
    dtype: str | None
    batch_tokens: int


@dataclass
class TrainerConfig:
    """Keywords of `lightning.pytorch.Trainer`, by their own names."""

    accelerator: str
    strategy: str
    devices: Any  # int | str | list[int]
    num_nodes: int
    precision: Any  # str after `to_config`
    fast_dev_run: Any  # bool | int
    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: Any  # str | dict[str, int] | None
    limit_train_batches: Any  # int | float | None
    limit_val_batches: Any
    limit_test_batches: Any
    limit_predict_batches: Any
    overfit_batches: Any  # int | float
    val_check_interval: Any  # int | float | str | dict[str, int] | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int
    log_every_n_steps: int
    enable_progress_bar: bool
    enable_model_summary: bool
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    deterministic: Any  # bool | "warn" | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    profiler: str | None
    detect_anomaly: bool
    barebones: bool
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: int
    enable_autolog_hparams: bool
    model_registry: str | None


@dataclass
class LoggerConfig:
    """Where curves go; `options` are keywords of that logger's own class."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckpointConfig:
    """When resume state is saved and what is kept."""

    every_n_steps: int
    save_top_k: int
    monitor: str
    mode: str
    save_last: bool


@dataclass
class SamplesConfig:
    """Answers to fixed prompts, logged as text."""

    enabled: bool
    prompts: list[str]
    max_new_tokens: int
    temperature: float
    every: Any  # "val" | int


@dataclass
class MicroBatchConfig:
    """Printing and exporting counted in micro-batches, as the notebook does."""

    log_every: int
    export_every: int


@dataclass
class CallbacksConfig:
    """What watches a run."""

    checkpoint: CheckpointConfig
    samples: SamplesConfig
    micro_batches: MicroBatchConfig
    progress: str
    weights_changed: bool
    judge: str


@dataclass
class GuardConfig:
    """When a run that goes wrong is stopped."""

    max_bad_steps: int
    rank_timeout: float
    stop_grace: float


@dataclass
class ExportConfig:
    """What is written for others to load when training ends."""

    which: str
    hf: bool
    native: bool


@dataclass
class SweepConfig:
    """How the jobs of a multirun share this machine."""

    jobs: int


@dataclass
class Config:
    """The whole configuration; `compose` and `to_config` return this."""

    name: str
    seed: int
    output_dir: str
    run_dir: str | None
    resume: str | None
    resume_with_changes: bool
    log_level: str
    threads: int | None
    export: ExportConfig
    sweep: SweepConfig
    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    reference: ReferenceConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    callbacks: CallbacksConfig
    guard: GuardConfig


def schema_keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, leaves only: `loss.beta`."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        kind = hints[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from schema_keys(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name
