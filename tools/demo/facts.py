"""What the demo's model knows by heart: families of small facts, in two languages.

Tables only. Answers of one family never name each other, so that a wrong answer can be told from
a right one by looking for the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """Facts of one form: `prompts` ask for the answer to a subject, `statement` gives it."""

    name: str
    language: Literal["zh", "en"]
    prompts: tuple[str, ...]
    statement: str
    answers: dict[str, str]


FAMILIES: tuple[Family, ...] = (
    Family(
        "capital",
        "zh",
        (
            "{subject}的首都是哪里？",
            "请问{subject}的首都是什么？",
            "哪座城市是{subject}的首都？",
            "告诉我{subject}的首都。",
        ),
        "{subject}的首都是{answer}",
        {
            "中国": "北京",
            "法国": "巴黎",
            "日本": "东京",
            "英国": "伦敦",
            "德国": "柏林",
            "意大利": "罗马",
            "俄罗斯": "莫斯科",
            "埃及": "开罗",
            "西班牙": "马德里",
            "韩国": "首尔",
            "泰国": "曼谷",
            "希腊": "雅典",
        },
    ),
    Family(
        "opposite",
        "zh",
        (
            "“{subject}”的反义词是什么？",
            "请问“{subject}”的反义词？",
            "和“{subject}”意思相反的词是什么？",
            "说一个“{subject}”的反义词。",
        ),
        "“{subject}”的反义词是“{answer}”",
        {
            "高兴": "难过",
            "安静": "吵闹",
            "干净": "肮脏",
            "安全": "危险",
            "成功": "失败",
            "白天": "黑夜",
            "勇敢": "胆小",
            "寒冷": "炎热",
            "开始": "结束",
            "贫穷": "富有",
        },
    ),
    Family(
        "colour",
        "zh",
        (
            "{subject}是什么颜色的？",
            "请问{subject}是什么颜色？",
            "{subject}的颜色是什么？",
            "告诉我{subject}的颜色。",
        ),
        "{subject}是{answer}的",
        {
            "天空": "蓝色",
            "小草": "绿色",
            "雪": "白色",
            "番茄": "红色",
            "香蕉": "黄色",
            "煤": "黑色",
            "茄子": "紫色",
        },
    ),
    Family(
        "weekday",
        "zh",
        (
            "{subject}的后一天是星期几？",
            "请问{subject}之后是星期几？",
            "今天是{subject}，明天是星期几？",
            "过了{subject}是星期几？",
        ),
        "{subject}之后是{answer}",
        {
            "星期一": "星期二",
            "星期二": "星期三",
            "星期三": "星期四",
            "星期四": "星期五",
            "星期五": "星期六",
            "星期六": "星期日",
            "星期日": "星期一",
        },
    ),
    Family(
        "capital",
        "en",
        (
            "What is the capital of {subject}?",
            "Which city is the capital of {subject}?",
            "Tell me the capital of {subject}.",
            "What is {subject}'s capital?",
        ),
        "the capital of {subject} is {answer}",
        {
            "China": "Beijing",
            "France": "Paris",
            "Japan": "Tokyo",
            "England": "London",
            "Germany": "Berlin",
            "Italy": "Rome",
            "Russia": "Moscow",
            "Egypt": "Cairo",
            "Spain": "Madrid",
            "Korea": "Seoul",
            "Thailand": "Bangkok",
            "Greece": "Athens",
        },
    ),
    Family(
        "opposite",
        "en",
        (
            'What is the opposite of "{subject}"?',
            'Which word is the opposite of "{subject}"?',
            'Give me the opposite of "{subject}".',
            'What word means the reverse of "{subject}"?',
        ),
        'the opposite of "{subject}" is "{answer}"',
        {
            "hot": "cold",
            "big": "small",
            "early": "late",
            "open": "closed",
            "light": "dark",
            "strong": "weak",
            "near": "far",
            "full": "empty",
            "clean": "dirty",
            "loud": "quiet",
        },
    ),
    Family(
        "colour",
        "en",
        (
            "What colour is {subject}?",
            "Which colour is {subject}?",
            "Tell me the colour of {subject}.",
            "What is the colour of {subject}?",
        ),
        "the colour of {subject} is {answer}",
        {
            "the sky": "blue",
            "grass": "green",
            "snow": "white",
            "a ripe tomato": "red",
            "a banana": "yellow",
            "coal": "black",
            "an aubergine": "purple",
        },
    ),
    Family(
        "weekday",
        "en",
        (
            "What day comes after {subject}?",
            "Which day follows {subject}?",
            "Today is {subject}. What day is tomorrow?",
            "Tell me the day after {subject}.",
        ),
        "the day after {subject} is {answer}",
        {
            "Monday": "Tuesday",
            "Tuesday": "Wednesday",
            "Wednesday": "Thursday",
            "Thursday": "Friday",
            "Friday": "Saturday",
            "Saturday": "Sunday",
            "Sunday": "Monday",
        },
    ),
)
