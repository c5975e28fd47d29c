"""How fast lint is, and how often it is right: made samples, English and Chinese, with faults planted in known ones.

    python benchmarks/data_lint.py [--rows 100000] [--repeats 3] [--seed 0] [--json FILE]

Rows are word problems with worked solutions, explanations in prose, code with an explanation, and the same in Chinese,
some 560 characters each. In one row of a thousand per kind a fault is planted. Precision and recall are counted over
the kinds that were planted: a row that is found without a fault of that kind in it counts against precision.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from made_rows import ENGLISH, MAKERS, NAMES, chinese_prose, prose
from strop.data.lint.check import examine
from strop.data.records import Conversation, Message, Place


@dataclass(slots=True)
class Planted:
    """A data set and what is wrong with it, by kind.

    Attributes:
        rows: questions and answers.
        faults: numbers of the rows with a fault of each kind.
        held_out: questions and answers that are held out.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    held_out: list[tuple[str, str]] = field(default_factory=list)

    def conversations(self) -> tuple[list[Conversation], list[Conversation]]:
        """The rows as samples, learned and held out."""
        return _as_samples(self.rows, "train.jsonl"), _as_samples(self.held_out, "test.jsonl")


def _as_samples(rows: list[tuple[str, str]], file: str) -> list[Conversation]:
    return [
        Conversation((Message("user", asked), Message("assistant", answered)), Place(file, line=number))
        for number, (asked, answered) in enumerate(rows, start=1)
    ]


def reworded(draw: random.Random, text: str) -> str:
    """The text with some words or characters changed: at most one character in twelve."""
    letters = list(text)
    places = [at for at, letter in enumerate(letters) if letter.isalpha() and letter not in "0123456789"]
    budget = max(1, len(letters) // draw.choice((16, 24, 40, 80)))
    for at in draw.sample(places, min(budget, len(places))):
        letters[at] = draw.choice("aeiourstn") if letters[at].isascii() else draw.choice("这那其各另某")
    return "".join(letters)


def extended(draw: random.Random, text: str) -> str:
    """The text with a few words before or behind it."""
    more = "Please read carefully." if text.isascii() else "请仔细阅读。"
    return f"{more} {text}" if draw.random() < 0.5 else f"{text} {more}"


def _id_number(draw: random.Random) -> str:
    born = f"{draw.randint(1960, 2005)}{draw.randint(1, 12):02}{draw.randint(1, 28):02}"
    body = f"{draw.choice(('110105', '310104', '440305'))}{born}{draw.randint(1, 999):03}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def _card_number(draw: random.Random) -> str:
    body = "4" + "".join(str(draw.randint(0, 9)) for _ in range(14))
    total = sum(sum(divmod(int(d) * (2 if place % 2 == 0 else 1), 10)) for place, d in enumerate(reversed(body)))
    digits = body + str(-total % 10)
    return " ".join(digits[at : at + 4] for at in range(0, 16, 4))


def _random_key(draw: random.Random, length: int) -> str:
    return "".join(draw.choice("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789") for _ in range(length))


def _misread(draw: random.Random, text: str) -> str:
    if text.isascii():
        return text.replace(".", " – caffè “noir”.", 1).encode().decode("cp1252", "ignore")
    return text.encode()[:-1].decode("utf-8", "ignore").encode().decode("gb18030", "ignore")


Fault = Callable[[random.Random, str, str], tuple[str, str]]


def answered(english: tuple[str, ...], chinese: tuple[str, ...] = ()) -> Fault:
    """Other words in the answer's place; {a} is the answer."""

    def fault(draw: random.Random, q: str, a: str) -> tuple[str, str]:
        return q, draw.choice(english if q.isascii() or not chinese else chinese).replace("{a}", a)

    return fault


def asked_with(make: Callable[[random.Random], str]) -> Fault:
    """Something more behind the question."""
    return lambda draw, q, a: (f"{q} {make(draw)}", a)


def inside(text: str) -> Fault:
    """A text in the middle of the answer."""
    return lambda draw, q, a: (q, f"{a[: len(a) // 2]}{text}{a[len(a) // 2 :]}")


def _phone(draw: random.Random) -> str:
    first, second = draw.randint(201, 499), draw.randint(2011, 4998)
    return draw.choice(
        (
            f"+1 415 {first} {second}",
            f"(212) {first}-{second}",
            f"手机：138{second}{second + 1}",
            f"+86 139 {second} {second + 1}",
        )
    )


def _host(draw: random.Random) -> str:
    return f"{draw.randint(30, 99)}.{draw.randint(1, 255)}.{draw.randint(1, 255)}.{draw.randint(1, 255)}"


def _mail(draw: random.Random) -> str:
    return f"{draw.choice(NAMES).lower()}.{draw.choice(ENGLISH)}@{draw.choice(('gmail.com', 'qq.com', '163.com'))}"


FAULTS: dict[str, Fault] = {
    "empty-answers": answered(("", " ", "\n")),
    "one-word-answers": answered(("Yes", "42.", "Paris", "copper"), ("是", "是的", "铜")),
    "cut-answers": answered(
        ("{a} This follows because the", "{a} It is made of wood, iron,", "{a} So we see that", "{a} Call it (x +"),
        ("{a}这一点很清楚，因为", "{a}原因有三个，", "{a}例如"),
    ),
    "unclosed-markup": answered(
        (
            "{a}\n\n```python\nprint(1)",
            "{a} Therefore $\\frac{1}{2",
            "{a} so $x = \\boxed{12",
            "{a}\n\\begin{align}\nx &= 1",
        )
    ),
    "no-sentence-end": answered(("{a} Then the captain measu",), ("{a}然后船长把望远",)),
    "mojibake": lambda draw, q, a: (_misread(draw, q), a),
    "replacement-characters": inside("\ufffd"),
    "control-characters": inside("\x00"),
    "invisible-characters": inside("\u200b"),
    "lost-backslashes": answered(("{a}\n$\x0crac{1}{2}$ and $\x08oxed{7}$.",)),
    "carriage-returns": answered(("{a}\r\nThe end.",), ("{a}\r\n完。",)),
    "html-left-over": answered(("{a}<br>Next &amp; last.", "<p>{a}</p>"), ("{a}<br/>完。", "{a}最后&nbsp;一句。")),
    "template-text": answered(
        ("{a}<|im_end|>", "{a}</s>", "{a} [INST] More. [/INST]", "{a}<eoa>", "{a}\n### Human: And now?")
    ),
    "secrets": asked_with(lambda draw: f"Key: sk-{_random_key(draw, 40)}."),
    "e-mail-addresses": asked_with(_mail),
    "phone-numbers": asked_with(_phone),
    "identity-numbers": asked_with(_id_number),
    "card-numbers": asked_with(_card_number),
    "ip-addresses": asked_with(_host),
    "refusals": answered(
        ("I’m sorry, but I can’t help with that. {a}", "As an AI language model, I have no opinion. {a}"),
        ("抱歉，我无法回答这个问题。{a}", "作为一个人工智能语言模型，我没有个人观点。{a}"),
    ),
    "answer-in-another-language": lambda draw, q, a: (q, chinese_prose(draw, 4) if q.isascii() else prose(draw, 4)),
}
"""How a fault of each kind is put into a question and its answer."""


def plant(count: int, seed: int = 0, share: float = 0.001, held_out: int = 1000) -> Planted:
    """Make samples with faults in known ones; the first tenth has none, and is what others repeat.

    Args:
        count: samples to learn.
        seed: of all that is drawn.
        share: of the samples, for each kind of fault.
        held_out: samples to hold out.
    """
    draw = random.Random(seed)  # noqa: S311
    made = Planted()
    made.rows = [draw.choice(MAKERS)(draw) for _ in range(count)]
    made.held_out = [draw.choice(MAKERS)(draw) for _ in range(held_out)]
    # Code is left alone: many faults would be part of the code in it.
    free = [row for row in range(count // 10, count) if "```" not in made.rows[row][1]]
    draw.shuffle(free)
    each = max(2, round(count * share))
    for kind in (*FAULTS, *RELATIONS):
        for row in [free.pop() for _ in range(each)]:
            made.rows[row] = FAULTS[kind](draw, *made.rows[row]) if kind in FAULTS else RELATIONS[kind](draw, made)
            made.faults[kind].add(row)
    return made


def _earlier(draw: random.Random, made: Planted) -> tuple[str, str]:
    return made.rows[draw.randrange(len(made.rows) // 10)]


def _near(draw: random.Random, made: Planted) -> tuple[str, str]:
    asked, answer = _earlier(draw, made)
    return (reworded(draw, asked), reworded(draw, answer)) if draw.random() < 0.5 else (extended(draw, asked), answer)


def _leaked(draw: random.Random, made: Planted) -> tuple[str, str]:
    asked = draw.choice(made.held_out)[0]
    return asked, prose(draw, 3) if asked.isascii() else chinese_prose(draw, 3)


def _overlapping(draw: random.Random, made: Planted) -> tuple[str, str]:
    long_ones = [asked for asked, _ in made.held_out if len(asked) > (150 if asked.isascii() else 50)]
    asked = draw.choice(long_ones)
    most = asked[len(asked) // 6 :]
    if asked.isascii():
        return f"Here is a task. {most} Think well.", prose(draw, 3)
    return f"这是一道题。{most}请认真思考。", chinese_prose(draw, 3)


def _contradicting(draw: random.Random, made: Planted) -> tuple[str, str]:
    asked, answer = _earlier(draw, made)
    while "boxed" not in answer:
        asked, answer = _earlier(draw, made)
    return asked, f"The answer is $\\boxed{{{draw.randint(10**6, 10**9)}}}$."


RELATIONS: dict[str, Callable[[random.Random, Planted], tuple[str, str]]] = {
    "exact-duplicates": _earlier,
    "near-duplicates": _near,
    "held-out-in-training": _leaked,
    "held-out-overlap": _overlapping,
    "contradicting-answers": _contradicting,
}
"""How a sample comes about that has to do with others."""


def scores(made: Planted, found: Callable[[str], list[int]]) -> dict[str, tuple[float, float, int]]:
    """Precision, recall and number of planted faults, by kind.

    The other side of a contradiction is found as well, which is as it should be.
    """
    result = {}
    for kind, planted in sorted(made.faults.items()):
        rows = set(found(kind))
        right = {
            row for row in rows if row in planted or (kind == "contradicting-answers" and row < len(made.rows) // 10)
        }
        result[kind] = (len(right) / len(rows) if rows else 0.0, len(rows & planted) / len(planted), len(planted))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    made = plant(args.rows, args.seed)
    learned, held_out = made.conversations()
    characters = sum(len(asked) + len(answered) for asked, answered in made.rows)
    seconds, processor = [], []
    for _ in range(args.repeats):
        started, used = time.perf_counter(), time.process_time()
        cases = examine(learned, held_out, control_tokens=("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    print(f"{args.rows:,} rows, {characters / 1e6:.1f} M characters, {len(held_out):,} held out")
    print(
        f"{statistics.median(seconds):.1f} s (median of {args.repeats}: {', '.join(f'{one:.1f}' for one in seconds)})"
    )
    table = scores(made, cases.rows)
    print(f"{'kind':32}{'planted':>8}{'precision':>11}{'recall':>8}")
    for kind, (precision, recall, planted) in table.items():
        print(f"{kind:32}{planted:8}{precision:11.3f}{recall:8.3f}")
    others = [finding for finding in cases.findings() if finding.kind not in made.faults]
    for finding in others:
        print(f"not planted: {finding.kind} {finding.count}: {finding.instances[0].place} {finding.instances[0].text}")
    if args.json:
        args.json.write_text(
            json.dumps(
                {"rows": args.rows, "seconds": seconds, "processor_seconds": processor, "scores": table}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
