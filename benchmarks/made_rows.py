"""Questions and answers that look like those of a data set, English and Chinese, drawn from a seed.

Word problems with worked solutions, explanations in prose, code with an explanation; some 500 characters each. Their
words mean nothing; their lengths, marks and repetitions are those of real ones.
"""

from __future__ import annotations

import random


def _words(text: str) -> list[str]:
    return text.split()


ENGLISH = _words(
    "water river market garden teacher student energy system number result method value surface engine signal "
    "history window bridge winter summer travel village forest island pressure volume machine letter picture "
    "station factory doctor farmer sailor captain planet season kitchen carpet mirror candle basket ladder "
    "hammer bottle pocket ticket railway harbour museum library theatre stadium hospital university laboratory "
    "telescope microscope battery magnet protein enzyme mineral crystal carbon oxygen nitrogen copper silver "
    "granite marble cotton leather paper"
)
VERBS = _words(
    "carries measures describes improves reduces follows supports requires produces explains compares controls "
    "protects connects divides absorbs releases changes reveals stores moves limits crosses covers replaces "
    "predicts"
)
ADJECTIVES = _words(
    "small large early late common rare simple complex steady sudden heavy light warm cold dry wet modern "
    "ancient local distant careful rapid gentle narrow broad deep shallow bright dark quiet"
)
NAMES = _words("Anna Boris Chloe Daniel Elena Farid Grace Hiro Ines Jonas Katya Liam Maria Noor Oscar Priya Quinn Rosa")
CHINESE_NOUNS = _words(
    "河流 市场 花园 老师 学生 能量 系统 数据 结果 方法 温度 表面 发动机 信号 历史 窗户 桥梁 冬天 夏天 旅行 "
    "村庄 森林 岛屿 压力 体积 机器 信件 图片 车站 工厂 医生 农民 船长 行星 季节 厨房 镜子 蜡烛 篮子 梯子 瓶子 "
    "车票 铁路 港口 博物馆 图书馆 剧院 医院 大学 实验室 望远镜 电池 蛋白质 矿物 晶体 氧气 铜线 棉花 皮革 纸张 "
    "语言 经济 文化 法律 城市 乡村 气候"
)
CHINESE_VERBS = _words(
    "影响 测量 描述 改善 减少 遵循 支持 需要 产生 解释 比较 控制 保护 连接 吸收 释放 改变 揭示 储存 限制 覆盖 替代 预测"
)
CHINESE_ADJECTIVES = _words(
    "重要的 简单的 复杂的 稳定的 突然的 常见的 罕见的 温暖的 寒冷的 干燥的 潮湿的 现代的 古老的 当地的 遥远的 "
    "宽阔的 狭窄的"
)


def english_sentence(draw: random.Random) -> str:
    """A sentence of some 70 characters."""
    parts = [
        f"the {draw.choice(ADJECTIVES)} {draw.choice(ENGLISH)} {draw.choice(VERBS)} the {draw.choice(ENGLISH)}",
        f"a {draw.choice(ENGLISH)} of {draw.choice(ENGLISH)} {draw.choice(VERBS)} every {draw.choice(ADJECTIVES)} one",
        f"{draw.choice(NAMES)} {draw.choice(VERBS)} the {draw.choice(ENGLISH)} with a {draw.choice(ENGLISH)}",
    ]
    draw.shuffle(parts)
    sentence = f" {draw.choice(('and', 'while', 'because', 'so that'))} ".join(parts[: draw.randint(1, 2)])
    return sentence[0].upper() + sentence[1:] + "."


def chinese_sentence(draw: random.Random) -> str:
    """A sentence of some 25 characters."""
    nouns = draw.choices(CHINESE_NOUNS, k=7)
    parts = [
        f"{draw.choice(CHINESE_ADJECTIVES)}{nouns[0]}{draw.choice(CHINESE_VERBS)}了{nouns[1]}",
        f"{nouns[2]}和{nouns[3]}可以{draw.choice(CHINESE_VERBS)}{nouns[4]}",
        f"人们用{nouns[5]}来{draw.choice(CHINESE_VERBS)}{draw.choice(CHINESE_ADJECTIVES)}{nouns[6]}",
    ]
    draw.shuffle(parts)
    return "，".join(parts[: draw.randint(1, 3)]) + "。"


def prose(draw: random.Random, many: int) -> str:
    return " ".join(english_sentence(draw) for _ in range(many))


def chinese_prose(draw: random.Random, many: int) -> str:
    return "".join(chinese_sentence(draw) for _ in range(many))


def problem(draw: random.Random) -> tuple[str, str]:
    a, b, c = draw.randint(12, 990), draw.randint(3, 90), draw.randint(2, 30)
    name, thing = draw.choice(NAMES), draw.choice(ENGLISH)
    asked = (
        f"{english_sentence(draw)} {name} has {a} {thing}s and buys {b} boxes with {c} {thing}s each. "
        f"{english_sentence(draw)} How many {thing}s does {name} have in the end?"
    )
    answered = (
        f"{name} buys ${b} \\times {c} = {b * c}$ {thing}s. {english_sentence(draw)}\n"
        f"Together with those at hand there are ${a} + {b * c} = {a + b * c}$.\n"
        f"\\[\\frac{{{a + b * c}}}{{1}} = {a + b * c}\\]\nThe answer is $\\boxed{{{a + b * c}}}$."
    )
    return asked, answered


def explanation(draw: random.Random) -> tuple[str, str]:
    about = f"{draw.choice(ADJECTIVES)} {draw.choice(ENGLISH)} and the {draw.choice(ENGLISH)}"
    asked = f"Explain how the {about} of a {draw.choice(ENGLISH)} work together. {english_sentence(draw)}"
    points = "\n".join(f"{number}. {english_sentence(draw)}" for number in range(1, draw.randint(2, 5)))
    return asked, f"{prose(draw, draw.randint(3, 8))}\n\n{points}\n\n{prose(draw, draw.randint(1, 4))}"


def code(draw: random.Random) -> tuple[str, str]:
    name, other = f"{draw.choice(ENGLISH)}_{draw.choice(ENGLISH)}", draw.choice(ENGLISH)
    asked = f"Write a Python function `{name}` that {draw.choice(VERBS)} a list of {other}s. {english_sentence(draw)}"
    body = "\n".join(
        f"    {draw.choice(NAMES)} = [{other} for {other} in {draw.choice(ENGLISH)}s if {draw.randint(2, 99)}]"
        for _ in range(draw.randint(2, 6))
    )
    block = f"```python\ndef {name}({other}s):\n{body}\n    return {other}s\n```"
    return asked, f"{english_sentence(draw)}\n\n{block}\n\n{prose(draw, 2)}"


def chinese_problem(draw: random.Random) -> tuple[str, str]:
    a, b, c = draw.randint(12, 990), draw.randint(3, 90), draw.randint(2, 30)
    thing = draw.choice(CHINESE_NOUNS)
    asked = (
        f"{chinese_sentence(draw)}小明有{a}个{thing}，又买了{b}箱，每箱{c}个。{chinese_sentence(draw)}"
        f"小明一共有多少个{thing}？"
    )
    answered = (
        f"先算新买的数量：{b}×{c}={b * c}个。{chinese_sentence(draw)}\n再加上原有的{a}个：{a}+{b * c}={a + b * c}。\n"
        f"{chinese_prose(draw, 2)}所以一共有{a + b * c}个{thing}。"
    )
    return asked, answered


def chinese_explanation(draw: random.Random) -> tuple[str, str]:
    one, other = draw.sample(CHINESE_NOUNS, 2)
    asked = f"请说明{draw.choice(CHINESE_ADJECTIVES)}{one}与{other}之间的关系。{chinese_sentence(draw)}"
    return asked, "\n\n".join(chinese_prose(draw, draw.randint(3, 7)) for _ in range(draw.randint(1, 3)))


MAKERS = (problem, explanation, explanation, code, chinese_problem, chinese_explanation, chinese_explanation)
