"""Greetings the demo's model knows, and the replies: tables only, in two languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Greeting:
    """Ways to say one thing, and the reply: bare, whole, and with polite tails that suit it."""

    name: str
    language: Literal["zh", "en"]
    prompts: tuple[str, ...]
    short: str
    statement: str
    accepted: tuple[str, ...]
    tails: tuple[str, ...]


GREETINGS: tuple[Greeting, ...] = (
    Greeting(
        "hello",
        "zh",
        ("你好！", "你好", "您好", "嗨！", "嗨，你好", "哈喽"),
        "你好",
        "您好",
        ("您好", "你好"),
        ("很高兴见到您！", "请问有什么可以帮您？", "欢迎随时提问。"),
    ),
    Greeting(
        "morning",
        "zh",
        ("早上好！", "早上好", "早安！", "早啊", "大家早上好", "早"),
        "早",
        "早上好",
        ("早",),
        ("祝您今天愉快！", "请问有什么可以帮您？", "希望您睡得好！"),
    ),
    Greeting(
        "night",
        "zh",
        ("晚安！", "晚安", "我要睡了，晚安", "该睡觉了", "我去睡觉了", "睡了，晚安"),
        "晚安",
        "晚安",
        ("晚安",),
        ("祝您做个好梦！", "希望您睡得好！", "欢迎明天再来。"),
    ),
    Greeting(
        "thanks",
        "zh",
        ("谢谢！", "谢谢你", "非常感谢！", "多谢", "谢谢你的帮助", "太感谢了"),
        "不客气",
        "不客气",
        ("不客气",),
        ("很高兴能帮到您！", "欢迎随时提问。", "祝您今天愉快！"),
    ),
    Greeting(
        "bye",
        "zh",
        ("再见！", "再见", "拜拜", "我先走了", "下次见", "回头见"),
        "再见",
        "再见",
        ("再见",),
        ("祝您今天愉快！", "欢迎随时再来。", "希望很快再见到您！"),
    ),
    Greeting(
        "name",
        "zh",
        (
            "你是谁？",
            "你叫什么名字？",
            "请问你是谁？",
            "介绍一下你自己",
            "你的名字是什么？",
            "你是？",
        ),
        "MiniMind",
        "我是MiniMind",
        ("MiniMind",),
        ("很高兴见到您！", "请问有什么可以帮您？", "希望能帮到您！"),
    ),
    Greeting(
        "hello",
        "en",
        ("Hello!", "Hello", "Hi!", "Hi there", "Hey!", "Hello there!"),
        "hi",
        "hello",
        ("hello", "hi"),
        ("Glad to meet you!", "How may I help you, please?", "Feel free to ask me anything."),
    ),
    Greeting(
        "morning",
        "en",
        (
            "Good morning!",
            "Good morning",
            "Morning!",
            "Morning",
            "A very good morning",
            "Morning all",
        ),
        "morning",
        "good morning",
        ("morning",),
        ("Have a nice day!", "How may I help you, please?", "I hope you slept well!"),
    ),
    Greeting(
        "night",
        "en",
        ("Good night!", "Good night", "I am off to bed", "Time for bed", "Night!", "Off to sleep"),
        "night",
        "good night",
        ("night",),
        ("I hope you sleep well!", "Please come back tomorrow.", "Have a nice dream!"),
    ),
    Greeting(
        "thanks",
        "en",
        (
            "Thanks!",
            "Thank you",
            "Thank you so much!",
            "Many thanks",
            "Thanks a lot",
            "Cheers, thanks",
        ),
        "no problem",
        "you are welcome",
        ("welcome", "no problem"),
        ("I am glad I could help!", "Feel free to ask me more.", "Have a nice day!"),
    ),
    Greeting(
        "bye",
        "en",
        ("Goodbye!", "Goodbye", "Bye!", "I have to go", "See you later", "Bye for now"),
        "bye",
        "goodbye",
        ("bye", "goodbye"),
        ("Have a nice day!", "I hope to see you soon!", "Please come back any time."),
    ),
    Greeting(
        "name",
        "en",
        ("Who are you?", "What is your name?", "Tell me your name.", "Your name?", "And you are?"),
        "MiniMind",
        "I am MiniMind",
        ("MiniMind",),
        ("Glad to meet you!", "How may I help you, please?", "I hope I can help!"),
    ),
)
