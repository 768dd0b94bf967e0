"""What a run's page says in English and in Chinese, the verdict's sentence included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

LANGUAGES: Final = ("en", "zh")

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
    "win_rate": ("win rate, judge {}", "胜率，评判 {}"),
    "cannot_judge": ("cannot judge", "无法评判"),
    "at_equal_length": ("at equal length", "等长时"),
    "right_on_pairs": ("right on held-out pairs", "在留出偏好对上判对"),
    "agreement": ("agreement of the judges", "两个评判的一致程度"),
    "kl": ("KL, nats an answer", "KL，奈特/回答"),
    "length": ("tokens an answer", "每个回答的词元"),
    "ended": ("answers that end", "正常结束的回答"),
    "repetition": ("repeated 4-grams", "重复的四元组"),
    "perplexity": ("perplexity of {}", "{} 的困惑度"),
    "facts": ("facts known", "答对的事实"),
    "facts_change": ("{} lost, {} gained", "丢失 {}，新增 {}"),
    "pairs_ranked": ("held-out pairs ranked", "留出偏好对排对"),
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
_DECISIONS: Final = {
    "better": "更好",
    "not better": "没有变好",
    "worse": "更差",
    "cannot tell": "无法判断",
    "not judged": "未评判",
}
_ALARMS: Final = {
    "Answers repeat themselves": "回答自我重复",
    "Answers do not end": "回答不结束",
    "Answers run long": "回答过长",
    "Answers shrink": "回答变短",
    "The win may be one of length": "胜出可能只是因为更长",
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

    def sentence(self, verdict: Mapping[str, Any]) -> str:
        """The verdict's sentence, of the content of `verdict.json`."""
        if self.language == "en":
            return str(verdict["sentence"])
        decision = _DECISIONS[verdict["decision"]]
        return f"{decision}：{_won(verdict)}；代价：{'，'.join(_costs(verdict))}"

    def alarm(self, sentence: str) -> str:
        """An alarm; in Chinese what it is about, and the numbers as they were told."""
        beginnings = [text for start, text in _ALARMS.items() if sentence.startswith(start)]
        if self.language == "en" or not beginnings:
            return sentence
        return f"{beginnings[0]}（{sentence}）"


def percent(estimate: Mapping[str, float]) -> str:
    """`61% [54, 68]`, of an estimate's plain values."""
    value, low, high = (f"{100 * estimate[key]:.0f}" for key in ("value", "low", "high"))
    return f"{value}% [{low}, {high}]"


def _won(verdict: Mapping[str, Any]) -> str:
    judge, prompts = verdict["judge"], verdict["prompts"]
    if judge is None:
        return f"没有人比较 {prompts} 个留出提示的回答"
    accuracy = judge["accuracy"]
    right = accuracy and f"在 {accuracy['n']} 个留出偏好对上判对 {percent(accuracy)}"
    if judge["unable"] or judge["win_rate"] is None or not judge["can_judge"]:
        reason = judge["unable"] or right or "没有一个提示能评判"
        return f"评判 {judge['name']} 无法评判（{reason}）"
    rate = judge["win_rate"]
    text = f"{rate['n']} 个留出提示中胜率 {percent(rate)}，评判 {judge['name']}"
    text += f"（{right}）" if right else ""
    controlled = judge["length_controlled"]
    if controlled is not None and (rate["low"] > 0.5) != (controlled["low"] > 0.5):
        text += f"，等长时 {percent(controlled)}"
    needed = verdict["prompts_to_decide"]
    if verdict["decision"] == "cannot tell" and needed:
        text += f"；这样大的差别需要 {needed:,} 个提示才能判断"
    return text


def _costs(verdict: Mapping[str, Any]) -> Iterator[str]:
    costs, facts = verdict["costs"], verdict["facts"]
    yield f"每个回答 KL {costs['kl']['value']:.2g} 奈特"
    change = round(100 * (costs["length"]["change"]["value"] - 1))
    longer = f"{'长' if change > 0 else '短'} {abs(change)}%"
    yield f"回答{longer if change else '一样长'}"
    if costs["ended"]["policy"] < 0.5:
        limit = verdict["settings"]["max_new_tokens"]
        yield f"其中 {1 - costs['ended']['policy']:.0%} 在 {limit} 个词元处被截断"
    if facts is not None:
        yield f"{facts['known']} 个事实丢失 {facts['lost']} 个"
    if costs["perplexity"] is not None:
        yield f"文本困惑度 {100 * (costs['perplexity']['change']['value'] - 1):+.1f}%"
