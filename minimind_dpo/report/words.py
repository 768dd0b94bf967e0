"""What a run's page says in English and in Chinese beside what is said of its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minimind_dpo.evaluation.text import LANGUAGES

_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "run": ("Run", "运行"),
    "no_verdict": ("There is no verdict on this run", "这次运行没有结论"),
    "unfinished": ("This run has not finished", "这次运行还没有结束"),
    "diverged": ("The run diverged", "运行发散了"),
    "numbers": ("In numbers", "数字"),
    "reference": ("reference", "参考模型"),
    "policy": ("policy", "策略"),
    "change": ("change", "变化"),
    "interval": (
        "[low, high]: 95% over held-out prompts; change is the policy against the reference",
        "[低, 高]：对留出提示的 95% 区间；变化是策略相对参考模型",
    ),
    "kl": ("KL, nats an answer", "KL，奈特/回答"),
    "curves": ("Curves", "曲线"),
    "no_curves": (
        "No metrics.csv: the run was logged elsewhere (logger), or not at all",
        "没有 metrics.csv：曲线记录在别处（logger），或没有记录",
    ),
    "chart_loss": ("loss", "损失"),
    "chart_accuracies": ("pairs ranked right", "排对的偏好对"),
    "chart_margins": ("reward margin", "奖励差"),
    "chart_rewards": ("implicit rewards", "隐式奖励"),
    "chart_logps": ("log-probs of answers, nats", "回答的对数概率，奈特"),
    "chart_grad_norm": ("gradient norm before clipping", "裁剪前的梯度范数"),
    "chart_learning_rate": ("learning rate", "学习率"),
    "chart_frontier": ("win rate at equal length", "等长胜率"),
    "train": ("training", "训练"),
    "val": ("validation", "验证"),
    "chosen": ("chosen", "优选"),
    "rejected": ("rejected", "劣选"),
    "step": ("step", "步"),
    "answers": ("Answers before and after", "训练前后的回答"),
    "answers_note": (
        "{} of the {} prompts whose answers differ, evenly spaced; {} were answered alike. Both "
        "answers are sampled with the same draws",
        "等距选取 {} 个，出自回答不同的 {} 个提示；另有 {} 个提示的回答相同。两个回答用同样的采样",
    ),
    "more": ("All others", "其余全部"),
    "preferred": ("preferred", "更好"),
    "cut": ("cut", "被截断"),
    "samples": ("Answers to fixed prompts (samples.md)", "固定提示的回答（samples.md）"),
    "data": ("Data", "数据"),
    "train_pairs": ("pairs for training", "训练用的偏好对"),
    "val_pairs": ("pairs for validation", "验证用的偏好对"),
    "files": ("files", "文件"),
    "tokens": ("tokens, median / 90% / most", "词元，中位 / 90% / 最多"),
    "prompt": ("prompt", "提示"),
    "truncated": ("cut to length", "按长度截断"),
    "dropped": ("left out", "未使用"),
    "duplicates": ("duplicates", "重复"),
    "longer": ("chosen longer", "优选更长"),
    "training": ("Training", "训练"),
    "model": ("model", "模型"),
    "steps": ("optimizer steps", "优化步"),
    "pairs_seen": ("pairs seen", "看过的偏好对"),
    "seconds": ("seconds, of which training", "秒，其中训练"),
    "speed": ("pairs a second", "偏好对/秒"),
    "bad_steps": ("steps refused", "被拒绝的步"),
    "weights_changed": ("weights changed", "改变的权重"),
    "validation": ("Validation", "验证"),
    "before": ("before", "之前"),
    "after": ("after", "之后"),
    "configuration": ("Configuration", "配置"),
    "versions": ("Versions", "版本"),
}


class Words:
    """The words of one language.

    Args:
        language: `en` or `zh`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)

    def __getitem__(self, key: str) -> str:
        return _TEXTS[key][self._place]

    def curve(self, column: str) -> str:
        """What a column of `metrics.csv` is called beside the others of its drawing."""
        part, _, name = column.partition("/")
        last = name.rpartition("/")[2]
        return self[last] if last in ("chosen", "rejected") else self[part]

    def of(self, content: Mapping[str, Any], key: str) -> Any:
        """What a content says at a key, in the page's language where it is there: `sentence_zh`."""
        plain = content.get(key, "")
        return plain if self.language == "en" else content.get(f"{key}_{self.language}", plain)
