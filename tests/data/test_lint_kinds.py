"""Every kind of finding: samples that are of it, and samples that look alike and are not. English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from strop.data.lint import KINDS, lint
from strop.data.lint.private import is_card_number, is_identity_number
from strop.data.records import Conversation, Message, Place, Role, ToolCall

QUESTION, CHINESE = "Why do ships float on the water of the sea?", "为什么轮船可以浮在海水上面？"
ANSWER = "A ship pushes water aside, and the water that it pushes aside weighs as much as the ship does."
CHINESE_ANSWER = "轮船排开了海水，被它排开的海水的重量正好等于轮船自己的重量，所以它能浮起来。"


def sample(asked: str, answered: str, line: int = 1, system: str | None = None) -> Conversation:
    turns = [Message("user", asked), Message("assistant", answered)]
    return Conversation(
        tuple([Message("system", system)] * (system is not None) + turns), Place("train.jsonl", line=line)
    )


def samples(*pairs: tuple[str, str], file: str = "train.jsonl") -> list[Conversation]:
    return [
        Conversation((Message("user", asked), Message("assistant", answered)), Place(file, line=line))
        for line, (asked, answered) in enumerate(pairs, start=1)
    ]


def kinds(learned: Sequence[Conversation], held_out: Sequence[Conversation] = (), **options: object) -> dict[str, int]:
    return {finding.kind: finding.count for finding in lint(learned, held_out, **options)}  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "answered"), [(QUESTION, ANSWER), (CHINESE, CHINESE_ANSWER)])
def test_nothing_is_found_where_nothing_is_wrong(asked: str, answered: str) -> None:
    assert kinds([sample(asked, answered)]) == {}
    assert kinds([]) == {}


# In each pair: a question, an answer.
IN_THE_TEXT = [
    ("empty-answers", QUESTION, " \n"),
    ("unclosed-markup", "Write it.", "Here it is:\n\n```python\nprint(1)\n"),
    ("unclosed-markup", "Compute it.", "So we get $\\boxed{\\frac{1}{2}"),
    ("unclosed-markup", "Compute it.", "So we get $\\frac{1}{2"),
    ("unclosed-markup", "计算。", "所以得到 $$\\frac{1}{2}"),
    ("unclosed-markup", "Compute it.", "\\begin{align}\nx &= 1"),
    ("cut-answers", QUESTION, f"{ANSWER} And it does so because the"),
    ("cut-answers", QUESTION, f"{ANSWER} It is made of iron, wood,"),
    ("cut-answers", CHINESE, f"{CHINESE_ANSWER}这是因为"),
    ("cut-answers", CHINESE, f"{CHINESE_ANSWER}原因有三个，"),
    ("mojibake", "What is cafÃ©?", ANSWER),
    ("mojibake", QUESTION, f"{ANSWER} Itâ€™s so."),
    ("mojibake", QUESTION, "Ð¿Ñ€Ð¸Ð²ÐµÑ‚, and so on."),
    ("mojibake", CHINESE.encode().decode("gb18030", "ignore"), CHINESE_ANSWER),
    ("mojibake", "锟斤拷锟斤拷是什么？", CHINESE_ANSWER),
    ("mojibake", "ä¸ºä»€ä¹ˆ", CHINESE_ANSWER),
    ("mojibake", QUESTION, "A shipï¿½s weight."),
    ("mojibake", "烫烫烫烫烫烫是什么？", CHINESE_ANSWER),
    ("replacement-characters", QUESTION, "A ship\ufffds weight."),
    ("broken-surrogates", QUESTION, "A smile \ud83d."),
    ("broken-surrogates", QUESTION, "A smile \ud83d\ude00 in two halves."),
    ("lost-backslashes", QUESTION, "It is $\x0crac{1}{2}$."),
    ("lost-backslashes", QUESTION, "It is $\x08oxed{7}$."),
    ("lost-backslashes", QUESTION, "It is $2 \times 3$ with \text{a ship}."),
    ("control-characters", QUESTION, "A ship\x00 floats."),
    ("invisible-characters", "Why do\u200b ships float?", ANSWER),
    ("invisible-characters", "\ufeff为什么？", CHINESE_ANSWER),
    ("invisible-characters", "Why \u202eships\u202c?", ANSWER),
    ("carriage-returns", QUESTION, "First.\r\nSecond."),
    ("html-left-over", QUESTION, "First.<br>Second."),
    ("html-left-over", CHINESE, "第一&nbsp;第二。"),
    ("template-text", QUESTION, f"{ANSWER}<|im_end|>"),
    ("template-text", QUESTION, f"{ANSWER} [INST] And then? [/INST]"),
    ("template-text", QUESTION, f"{ANSWER}</s>"),
    ("template-text", QUESTION, f"{ANSWER}\n### Human: And then?"),
    ("template-text", CHINESE, f"{CHINESE_ANSWER}<eoa>"),
    ("template-text", CHINESE, "<｜User｜>为什么？"),
    ("template-text", QUESTION, "USER: Why?\nASSISTANT: So.\nUSER: And why is that so?"),
    ("secrets", "My key is sk-proj-9aZ4bQ7xLw2Rt8VnY3kP6mHs1Ue5Dc0F, help.", ANSWER),
    ("secrets", "AKIAQ7XLW2RT8VNY3KP6", ANSWER),
    ("secrets", "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq\n-----END RSA PRIVATE KEY-----", ANSWER),
    ("secrets", "Authorization: Bearer q7XLw2Rt8VnY3kP6mHs1Ue5Dc0F9aZ4b", ANSWER),
    ("e-mail-addresses", "Write to anna.lind@gmail.com please.", ANSWER),
    ("e-mail-addresses", "请发到 zhang.wei@163.com 谢谢。", CHINESE_ANSWER),
    ("phone-numbers", "Call +1 415 392 7741 now.", ANSWER),
    ("phone-numbers", "我的手机是13812947756。", CHINESE_ANSWER),
    ("phone-numbers", "请拨 +86 138 1294 7756。", CHINESE_ANSWER),
    ("identity-numbers", "身份证号 11010519491231002X。", CHINESE_ANSWER),
    ("card-numbers", "Pay with 4539 1488 0343 6467.", ANSWER),
    ("card-numbers", "银行卡号4539148803436467。", CHINESE_ANSWER),
    ("ip-addresses", "The host is 93.184.216.34.", ANSWER),
    ("refusals", QUESTION, "I'm sorry, but I can't help with that."),
    ("refusals", QUESTION, "As an AI language model, I do not sail."),
    ("refusals", CHINESE, "很抱歉，我无法回答这个问题。"),
    ("refusals", CHINESE, "作为一个人工智能语言模型，我没有看过海。"),
    ("answer-in-another-language", QUESTION, CHINESE_ANSWER),
    ("answer-in-another-language", CHINESE, ANSWER),
]

# Each looks like the kind, and is right.
NOT_IN_THE_TEXT = [
    ("unclosed-markup", "How much?", "It costs $5, and the other $7, and both $12, and $3 more."),
    ("unclosed-markup", "How much?", "He will charge $$60+$150=$210 in all."),
    ("unclosed-markup", "Write it.", "```python\nprint(1)\n```\n\nThat is all, and $x^2$ with \\boxed{\\{1, 2\\}}."),
    ("cut-answers", QUESTION, f"{ANSWER} It belongs to me and I"),
    (
        "cut-answers",
        "Write a list.",
        "A list of things that belong together in some way or other:\n- first thing\n- second",
    ),
    ("mojibake", "Qui a dit «CAFÉ»? Das macht Spaß“, sagte er; AMANHÃ” e NOËL… É»", ANSWER),
    ("mojibake", "Größe, naïve, señor, Århus, Ångström: 5 × 3 – 2 “quoted”", ANSWER),
    ("mojibake", "涓滴之水，浣熊，鍋，鐵路與鏡子，歲月", CHINESE_ANSWER),
    ("invisible-characters", "A family: 👨\u200d👩\u200d👧 and ❤\ufe0f", ANSWER),
    ("invisible-characters", "می\u200cخواهم و \u200fسلام", ANSWER),
    ("lost-backslashes", QUESTION, "It is \\frac{1}{2}\nand\n\ttext that is indented\n\tright here."),
    ("carriage-returns", QUESTION, "First.\nSecond."),
    ("html-left-over", "What is an HTML paragraph?", "A <p> tag."),
    ("html-left-over", QUESTION, "If a < b and b > c, then `<br>` is code."),
    ("template-text", QUESTION, "An array[INDEX] of <T> with <s>struck</s> words and <= or <<48/2=24>>24."),
    ("template-text", QUESTION, "In code: `<|im_end|>` ends a turn."),
    ("template-text", QUESTION, "The option --strategy <s> and the group (?P<unk>x)."),
    ("template-text", QUESTION, "Q: and A: are letters.\nAnswer: it floats.\n## Response times"),
    ("secrets", "Use sk-your-key-goes-here-xxxxxxxxxxxx or AKIAIOSFODNN7EXAMPLE.", ANSWER),
    ("secrets", "A function_name_that_is_very_long_and_has_1_number and some-css-class-name-2", ANSWER),
    ("e-mail-addresses", "user@example.com, @decorator, a@b, git@github.com, noreply@site.com", ANSWER),
    ("phone-numbers", "What is 13500000000 * 2 + 1234567890 - 18?", "It is 13812947756 / 3 = 4604315918.67."),
    ("phone-numbers", "(123) 555-0142 and 2023-10-12 and 1-2-3 and 192 - 168 - 1 - 20", ANSWER),
    ("identity-numbers", "110105194912310021 and 123456789012345678", ANSWER),
    ("card-numbers", "4539148803436467 + 4539 1488 0343 6468", ANSWER),
    (
        "ip-addresses",
        "127.0.0.1, 192.168.1.1, 10.0.0.7, 192.0.2.4, 224.0.0.251, version 5.10.2.1, 1.2.3.4.5, 300.1.1.1",
        ANSWER,
    ),
    ("refusals", QUESTION, "I'm sorry to hear that. You can cast off the line yourself; I can't wait to see it."),
    ("refusals", "What did he say?", "He said that he would not help, and that he was sorry."),
    ("refusals", CHINESE, "我们无法看到空气，但是可以感觉到它。"),
    ("answer-in-another-language", "请把“轮船为什么浮在水上”翻译成英文。", ANSWER),
    ("answer-in-another-language", "How do you say 'ships float because of the water' in Chinese?", CHINESE_ANSWER),
    (
        "answer-in-another-language",
        "写一个加法函数。",
        "```python\ndef add(first, second):\n    return first + second\n```",
    ),
    ("answer-in-another-language", "求 x 的值。", "$x = 5$"),
]


@pytest.mark.parametrize(("kind", "asked", "answered"), IN_THE_TEXT)
def test_a_fault_in_the_text_is_found(kind: str, asked: str, answered: str) -> None:
    (finding,) = [finding for finding in lint([sample(asked, answered, line=7)]) if finding.kind == kind]
    assert finding.count == 1
    assert [str(one.place) for one in finding.instances] == ["train.jsonl:7"]
    assert finding.instances[0].text
    assert "1 of 1 samples" in finding.what


@pytest.mark.parametrize(("kind", "asked", "answered"), NOT_IN_THE_TEXT)
def test_what_looks_like_a_fault_and_is_none_is_not_found(kind: str, asked: str, answered: str) -> None:
    assert kind not in kinds([sample(asked, answered)])


@pytest.mark.parametrize("kind", ["mojibake", "control-characters", "template-text", "secrets"])
def test_reasoning_and_plain_texts_are_looked_at_as_well(kind: str) -> None:
    text = next(f"{asked} {answered}" for name, asked, answered in IN_THE_TEXT if name == kind)
    thought = Conversation(
        (Message("user", QUESTION), Message("assistant", ANSWER, thinking=text)), Place("train.jsonl", line=1)
    )
    assert kind in kinds([thought])
    assert kind in kinds([Conversation((), Place("train.jsonl", line=1), text=text)])


def test_answers_of_one_word_are_unusual_only_beside_longer_ones() -> None:
    long_ones = [(f"{QUESTION} {number}", f"{ANSWER} {number}.") for number in range(8)]
    assert kinds(samples(*long_ones, ("Is it?", "Yes"))).get("one-word-answers") == 1
    assert kinds(samples(*long_ones, ("是吗？", "是的"))).get("one-word-answers") == 1
    assert "one-word-answers" not in kinds(samples(*long_ones, ("Why?", CHINESE_ANSWER)))
    assert "one-word-answers" not in kinds(samples(*[(f"Is {number} even?", "Yes") for number in range(9)]))


def test_an_end_without_a_sentence_end_is_unusual_only_beside_others() -> None:
    ended = [(f"{QUESTION} {number}", f"Point {number} is this. {ANSWER}") for number in range(12)]
    cut = ("And why?", f"{ANSWER} Then the captain measu")
    assert kinds(samples(*ended, cut)).get("no-sentence-end") == 1
    assert kinds(samples(*ended, ("为何？", f"{CHINESE_ANSWER}然后船长把望远"))).get("no-sentence-end") == 1
    assert "no-sentence-end" not in kinds(samples(*ended[:3], cut, ("And how?", f"{cut[1]} it"), ("So?", cut[1][5:])))


@pytest.mark.parametrize("tokens", [False, True])
def test_answers_that_were_cut_at_one_length(tokens: bool) -> None:
    whole = [(f"Why {number}?", f"Number {number}. {'word ' * (30 + number)}end.") for number in range(40)]
    cut = [(f"How {number}?", (f"Case {number:03}: " + "word " * 90)[:291] + "so th") for number in range(8)]
    lengths = [60 + number for number in range(40)] + [512] * 8 if tokens else None
    if tokens:
        cut = [(asked, answered[number:]) for number, (asked, answered) in enumerate(cut)]
    findings = {finding.kind: finding for finding in lint(samples(*whole, *cut), lengths=lengths)}
    assert findings["cut-at-one-length"].count == 8
    assert ("512 tokens" if tokens else "296 characters") in findings["cut-at-one-length"].instances[0].text
    assert "cut-at-one-length" not in kinds(samples(*whole))
    same_length_but_whole = [(f"How {number}?", f"Case {number:03}: {'word ' * 56}end.") for number in range(8)]
    assert "cut-at-one-length" not in kinds(samples(*whole, *same_length_but_whole))


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ("user user assistant", "both of the user"),
        ("user assistant assistant", "both of the assistant"),
        ("assistant user assistant", "before any question"),
        ("user assistant user", "last turn is of the user"),
        ("user system assistant", "turn 2 is a system turn"),
        ("user tool assistant", "not called"),
        ("system user assistant user assistant", ""),
    ],
)
def test_the_order_of_turns(roles: str, fault: str) -> None:
    names: list[Role] = roles.split()  # type: ignore[assignment]
    turns = tuple(Message(role, f"{ANSWER} {number}.") for number, role in enumerate(names))
    found = [one for one in lint([Conversation(turns, Place("train.jsonl", line=1))]) if one.kind == "role-order"]
    assert bool(found) == bool(fault)
    if fault:
        assert fault in found[0].instances[0].text


def test_calls_of_tools_are_in_order_and_not_empty_answers() -> None:
    call = Message("assistant", "", calls=(ToolCall("sea", '{"depth": 3}'),))
    turns = (Message("user", QUESTION), call, Message("tool", "3 m"), Message("assistant", ANSWER))
    assert kinds([Conversation(turns, Place("train.jsonl", line=1))]) == {}


def test_system_prompts_that_are_missing_or_differ() -> None:
    with_prompt = [sample(f"{QUESTION} {n}", f"{n}: {ANSWER}", n, "You are a sailor.") for n in (1, 2, 3)]
    assert kinds(with_prompt).keys().isdisjoint({"system-prompt-missing", "system-prompts-differ"})
    mixed = [*with_prompt, sample(CHINESE, CHINESE_ANSWER, 4), sample("And?", ANSWER, 5, "你是水手。")]
    found = {finding.kind: finding for finding in lint(mixed)}
    assert [str(one.place) for one in found["system-prompt-missing"].instances] == ["train.jsonl:4"]
    assert [str(one.place) for one in found["system-prompts-differ"].instances] == ["train.jsonl:5"]
    assert "2 different ones; 3 samples" in found["system-prompts-differ"].what


@pytest.mark.parametrize("prompts", [("You are a sailor.", "你是水手。"), ("你是水手。", "You are a sailor.")])
def test_of_system_prompts_as_frequent_the_first_is_the_usual_one(prompts: tuple[str, str]) -> None:
    """In every process: hashes of texts, which differ from one to the next, decide nothing."""
    rows = [sample(f"{QUESTION} {n}", f"{n}: {ANSWER}", n, prompts[n % 2]) for n in (2, 3, 4, 5)]
    found = {finding.kind: finding for finding in lint(rows)}
    assert [one.place.line for one in found["system-prompts-differ"].instances] == [3, 5]


def test_what_is_there_twice() -> None:
    found = {one.kind: one for one in lint(samples((QUESTION, ANSWER), (CHINESE, CHINESE_ANSWER), (QUESTION, ANSWER)))}
    assert found.keys() == {"exact-duplicates", "languages"}
    assert found["exact-duplicates"].count == 1
    assert str(found["exact-duplicates"].instances[0].place) == "train.jsonl:3"
    assert "as train.jsonl:1" in found["exact-duplicates"].instances[0].text


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (ANSWER, ANSWER.replace("pushes water", "pushes some water"), "near-duplicates"),
        (CHINESE_ANSWER, CHINESE_ANSWER.replace("海水", "湖水", 1), "near-duplicates"),
        (ANSWER, ANSWER.upper().replace(",", " ;"), "near-duplicates"),
        (ANSWER, "It is light, since there is much air in it, and air weighs next to nothing at all.", ""),
        (CHINESE_ANSWER, "因为船里面有很多空气，而空气非常轻，整条船的密度比水小，因此它不会沉下去。", ""),
    ],
)
def test_near_duplicates(one: str, other: str, kind: str) -> None:
    asked = QUESTION if one.isascii() else CHINESE
    found = kinds(samples((f"{asked} Say it.", one), (f"{asked} Say it!", other)))
    assert ("near-duplicates" in found) == bool(kind)


def test_other_numbers_make_another_exercise() -> None:
    asked = "A ship carries {} boxes of oranges and {} boxes of lemons. How many boxes does it carry altogether?"
    answered = "It carries {} + {} = {} boxes altogether, which is the sum of the oranges and the lemons."
    found = kinds(
        samples(
            (asked.format(17, 25), answered.format(17, 25, 42)), (asked.format(31, 48), answered.format(31, 48, 79))
        )
    )
    assert found == {"same-but-for-numbers": 1}


def test_long_instructions_do_not_make_near_duplicates() -> None:
    rule = "Say whether the review below is positive or negative. Answer in one word and give no reason for it. " * 4
    reviews = ("I loved every minute of this play.", "The soup was cold and the waiter rude.", "这家店的面很好吃。")
    found = kinds(samples(*[(f"{rule}\n{review}", "positive, as it seems to me") for review in reviews]))
    assert "near-duplicates" not in found


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("2 + 2 = 4.\n#### 4", "Two and two make five.\n#### 5", "contradicting-answers"),
        ("So it is $\\boxed{4}$.", "It must be $\\boxed{\\frac{8}{3}}$.", "contradicting-answers"),
        ("巴黎。", "里昂。", "contradicting-answers"),
        ("所以答案是4。", "先加再减，答案是5。", "contradicting-answers"),
        ("2 + 2 = 4.\n#### 4", "Two and two make four.\n#### 4", "repeated-questions"),
        ("I count them one by one, and get four.", "Two pairs are four, as everybody knows.", "repeated-questions"),
    ],
)
def test_questions_with_several_answers(one: str, other: str, kind: str) -> None:
    found = kinds(samples(("What is it?", one), ("what  is it?", other), (QUESTION, ANSWER)))
    assert found.keys() & {"contradicting-answers", "repeated-questions"} == {kind}


LONG = (
    "A captain sails from the harbour to the island with 48 boxes, sells half of them at the market there, and then "
    "sails back with the rest. How many boxes are still on board when the ship is tied up again?"
)
CHINESE_LONG = (
    "一位船长带着48个箱子从港口出发前往小岛，在那里的市场卖掉了一半，然后带着剩下的箱子返回。"
    "请问轮船靠岸时船上还有多少个箱子？"
)


@pytest.mark.parametrize("question", [LONG, CHINESE_LONG])
def test_held_out_questions_in_training(question: str) -> None:
    held_out = samples((question, "#### 24"), file="test.jsonl")
    (found,) = [one for one in lint(samples((question, ANSWER)), held_out) if one.kind == "held-out-in-training"]
    assert (found.severity, found.count) == ("stop", 1)
    assert str(found.instances[0].place) == "train.jsonl:1"
    assert "test.jsonl:1" in found.instances[0].text
    part = f"Once more. {question[4:]} Think."
    assert kinds(samples((part, ANSWER)), held_out).get("held-out-overlap") == 1
    assert kinds(samples(("Tell it.", part)), held_out).get("held-out-overlap") == 1
    text = Conversation((), Place("books.jsonl", line=1), text=f"{ANSWER} {question} {ANSWER}")
    assert kinds([text], held_out).get("held-out-overlap") == 1
    for other in (question.replace("48", "60"), question[: len(question) // 3] + ANSWER):
        assert kinds(samples((other, ANSWER)), held_out).keys().isdisjoint({"held-out-in-training", "held-out-overlap"})


def test_an_instruction_that_all_questions_share_is_no_leak() -> None:
    rule = "Read the following text with care and then answer the question about it in one short sentence of your own: "
    learned = samples(*[(f"{rule}{word} learned", f"{word}. {ANSWER}") for word in ("one", "two", "three", "four")])
    held_out = samples(
        *[(f"{rule}{word} held", ANSWER) for word in ("six", "seven", "eight", "nine")], file="test.jsonl"
    )
    assert "held-out-overlap" not in kinds(learned, held_out)


def test_lengths() -> None:
    learned, held_out = (
        samples((QUESTION, ANSWER), (CHINESE, CHINESE_ANSWER)),
        samples(("So?", ANSWER), file="test.jsonl"),
    )
    found = {
        one.kind: one
        for one in lint(
            learned, held_out, lengths=[100, 900], held_out_lengths=[600], max_tokens=512, context_tokens=800
        )
    }
    assert [str(one.place) for one in found["over-long"].instances] == ["train.jsonl:2", "test.jsonl:1"]
    assert found["over-context"].count == 1
    assert "900 tokens, 800 allowed" in found["over-context"].instances[0].text
    assert "over-long" not in kinds(learned, lengths=[100, 512], max_tokens=512)


def test_control_tokens_of_the_model() -> None:
    learned = samples((QUESTION, f"{ANSWER} <end_of_answer>"), (CHINESE, CHINESE_ANSWER))
    assert "control-tokens" not in kinds(learned)
    assert kinds(learned, control_tokens=("<end_of_answer>", "<s>")).get("control-tokens") == 1


def test_languages() -> None:
    mixed = samples(
        (QUESTION, ANSWER),
        ("And why?", f"{ANSWER} So."),
        (CHINESE, CHINESE_ANSWER),
        ("なぜ？", "船は水の上に浮かぶことができます。"),
    )
    (found,) = [one for one in lint(mixed) if one.kind == "languages"]
    assert found.count == 2
    assert "Latin script 50.0%, Chinese 25.0%, Japanese 25.0%" in found.what


def test_what_stops_comes_first_then_by_count() -> None:
    learned = samples((LONG, ""), (QUESTION, "First.\r\nSecond."), (CHINESE, "完。\r\n"), ("Why?", "A\x00 ship."))
    found = [(one.severity, one.count) for one in lint(learned, samples((LONG, ANSWER), file="test.jsonl"))]
    assert found == sorted(found, key=lambda one: (["stop", "warn", "note"].index(one[0]), -one[1]))
    assert found[0] == ("stop", 1)


def test_secrets_are_never_shown_whole() -> None:
    key, mail, phone = "sk-proj-9aZ4bQ7xLw2Rt8VnY3kP6mHs1Ue5Dc0F", "anna.lind@gmail.com", "13812947756"
    learned = samples(*[(f"{QUESTION} {key} {mail} 手机{phone}", f"{ANSWER}\x00")] * 2)
    shown = " ".join(one.text for finding in lint(learned) for one in finding.instances)
    assert "sk-p" in shown
    assert key[:8] not in shown
    assert mail not in shown
    assert phone not in shown


def test_check_digits() -> None:
    # The example of GB 11643-1999, annex A; test numbers of Luhn's formula as payment services publish them.
    assert is_identity_number("11010519491231002X")
    assert not is_identity_number("110105194912310021")
    assert not is_identity_number("11010519491331002X")
    assert is_card_number("5555555555554444")
    assert is_card_number("378282246310005")
    assert not is_card_number("5555555555554445")


def test_every_kind_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    lint(
        samples(*[(f"{QUESTION} {n}", f"{n}: {ANSWER}") for n in range(5)]),
        progress=lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (5, 5)
