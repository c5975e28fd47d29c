"""What --fix repairs and drops, what it leaves, the account of it, and the file that it writes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from strop.data.lint import FIXED, fix, lint, write_fixed
from strop.data.records import Conversation, Message, Place, Span, ToolCall
from strop.errors import UsageError


def sample(answered: str, asked: str = "Why is that so?", line: int = 1) -> Conversation:
    return Conversation((Message("user", asked), Message("assistant", answered)), Place("train.jsonl", line=line))


def answer(conversation: Conversation) -> str:
    return conversation.messages[-1].content


@pytest.mark.parametrize(
    ("broken", "right", "kind"),
    [
        ("cafÃ© and naÃ¯ve", "café and naïve", "mojibake"),
        ("Itâ€™s â€œgoodâ€\x9d", "It’s “good”", "mojibake"),
        ("cafÃƒÂ©", "café", "mojibake"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет", "mojibake"),
        ("ä½\xa0å¥½ï¼Œä¸–ç•Œ", "你好，世界", "mojibake"),
        ("ðŸ˜€ done", "😀 done", "mojibake"),
        (
            "你好世界欢迎来到这里学习".encode().decode("gb18030"),
            "你好世界欢迎来到这里学习",
            "mojibake",
        ),
        (
            "$\x0crac{1}{2} + \x08oxed{3}$ and $\x0bec{x}$",
            "$\\frac{1}{2} + \\boxed{3}$ and $\\vec{x}$",
            "lost-backslashes",
        ),
        ("$2 \times 3$ \text{ m}", "$2 \\times 3$ \\text{ m}", "lost-backslashes"),
        ("$\\left(x\right)$", "$\\left(x\\right)$", "lost-backslashes"),
        ("a\x00b\x7fc", "abc", "control-characters"),
        ("\ufeffa\u200bb\xadc\u202ed", "abcd", "invisible-characters"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree", "carriage-returns"),
        ("a \ud83d\ude00 b", "a 😀 b", "broken-surrogates"),
    ],
)
def test_a_text_is_repaired(broken: str, right: str, kind: str) -> None:
    fixed = fix([sample(broken)])
    assert answer(fixed.conversations[0]) == right
    (change,) = [change for change in fixed.changes if change.kind == kind]
    assert (change.count, change.dropped, str(change.places[0])) == (1, False, "train.jsonl:1")
    assert "─▶" in change.instances[0].text


@pytest.mark.parametrize(
    "text",
    [
        "Das macht Spaß“, sagte er, «CAFÉ», AMANHÃ”.",
        "涓滴之水，浣熊，鍋，鐵路",
        "👨\u200d👩\u200d👧 ❤\ufe0f می\u200cخواهم \u200fسلام",
        "lost \ufffd and 锟斤拷 and ï¿½ and half \ud83d alone",
        "\ttext in a table\n\ttimes of day",
        "No sentence end, template <|im_end|>, sk-proj-9aZ4bQ7xLw2Rt8VnY3kP6mHs1Ue5Dc0F, &amp;, a b c",
    ],
)
def test_what_has_no_single_repair_is_left(text: str) -> None:
    before = [sample(text)]
    fixed = fix(before)
    assert fixed.conversations == tuple(before)
    assert fixed.changes == ()
    assert {finding.kind for finding in fixed.left} == {finding.kind for finding in lint(before)}


def test_samples_are_dropped_with_an_account() -> None:
    whole = "A ship floats because of the water that it pushes aside, all of which weighs as much."
    learned = [
        sample(whole, "Why do ships float?", 1),
        sample("  ", "Why is it empty?", 2),
        sample(whole, "Why do ships float?", 3),
        sample(whole + " So it is.", "Is this held out?", 4),
        sample("Another one.", "Why not?", 5),
    ]
    held_out = [
        Conversation((Message("user", "Is this  held OUT?"), Message("assistant", "Yes.")), Place("test.jsonl", line=9))
    ]
    fixed = fix(learned, held_out)
    assert [conversation.place.line for conversation in fixed.conversations] == [1, 5]
    assert fixed.kept == (0, 4)
    assert {change.kind: [str(place) for place in change.places] for change in fixed.changes} == {
        "empty-answers": ["train.jsonl:2"],
        "exact-duplicates": ["train.jsonl:3"],
        "held-out-in-training": ["train.jsonl:4"],
    }
    assert all(change.dropped for change in fixed.changes)
    account = fixed.as_dict()
    assert account["kept"] == 2
    assert json.loads(json.dumps(account)) == account
    assert "test.jsonl:9" in json.dumps(account)


def test_samples_that_become_equal_are_dropped_as_duplicates() -> None:
    fixed = fix([sample("One\nand two.", line=1), sample("One\r\nand two.", line=2)])
    assert [change.kind for change in fixed.changes] == ["exact-duplicates", "carriage-returns"]
    assert len(fixed.conversations) == 1


def test_only_what_is_asked_for_is_fixed() -> None:
    learned = [sample("caf\x00Ã©", line=1), sample("", line=2)]
    fixed = fix(learned, kinds=["control-characters"])
    assert [answer(one) for one in fixed.conversations] == ["cafÃ©", ""]
    with pytest.raises(UsageError, match="near-duplicates"):
        fix(learned, kinds=["near-duplicates"])


def test_spans_move_with_their_characters() -> None:
    content = "\u200bSo it is cafÃ©\r\nand 4\x00."
    start = content.index("and")
    message = Message("assistant", content, spans=(Span(1, 3, 0.0), Span(start, start + 5, 2.0)))
    turn = fix([Conversation((Message("user", "What?"), message), Place("a", line=1))]).conversations[0].messages[1]
    assert turn.content == "So it is café\nand 4."
    assert [(turn.content[span.start : span.end], span.weight) for span in turn.spans] == [("So", 0.0), ("and 4", 2.0)]


def test_a_border_inside_of_what_would_be_replaced_leaves_the_turn() -> None:
    message = Message("assistant", "cafÃ© is good.", spans=(Span(0, 4, 0.0),))
    before = Conversation((Message("user", "What?"), message), Place("a", line=1))
    fixed = fix([before])
    assert fixed.conversations == (before,)
    assert fixed.changes == ()
    assert "mojibake" in {finding.kind for finding in fixed.left}


def test_a_question_of_unseen_characters_alone_is_not_emptied() -> None:
    before = sample("Yes, it is.", "\u200b\u200b")
    assert fix([before]).conversations == (before,)


def test_reasoning_and_plain_texts_are_repaired_and_calls_are_not() -> None:
    call = ToolCall("sea", '{"name": "cafÃ©"}')
    turns = (Message("user", "What?"), Message("assistant", "Well.", thinking="cafÃ©", calls=(call,)))
    fixed = fix([Conversation(turns, Place("a", line=1)), Conversation((), Place("a", line=2), text="cafÃ©\r\n")])
    assert fixed.conversations[0].messages[1].thinking == "café"
    assert fixed.conversations[0].messages[1].calls == (call,)
    assert fixed.conversations[1].text == "café\n"


def test_what_is_written_holds_everything(tmp_path: Path) -> None:
    full = Conversation(
        (
            Message("system", "你是水手。"),
            Message("user", "How deep?", name="anna"),
            Message("assistant", "", thinking="I look.", calls=(ToolCall("sea", '{"at": 3}', "call-1"),)),
            Message("tool", "3 m", call_id="call-1", name="sea"),
            Message("assistant", "It is 3 m deep.", weight=0.5, spans=(Span(6, 9, 2.0),)),
        ),
        Place("train.jsonl", line=1),
        tools=('{"type": "function", "function": {"name": "sea"}}',),
    )
    path = tmp_path / "clean.jsonl"
    assert write_fixed(path, [full, Conversation((), Place("b", line=1), text="Once.\n"), sample("half \ud83d")]) == 3
    rows = [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]
    assert rows[0] == {
        "messages": [
            {"role": "system", "content": "你是水手。"},
            {"role": "user", "content": "How deep?", "name": "anna"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "I look.",
                "tool_calls": [
                    {"id": "call-1", "type": "function", "function": {"name": "sea", "arguments": '{"at": 3}'}}
                ],
            },
            {"role": "tool", "content": "3 m", "tool_call_id": "call-1", "name": "sea"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "It is "},
                    {"type": "text", "text": "3 m", "weight": 2.0},
                    {"type": "text", "text": " deep."},
                ],
                "weight": 0.5,
            },
        ],
        "tools": [{"type": "function", "function": {"name": "sea"}}],
    }
    assert rows[1] == {"text": "Once.\n"}
    assert rows[2]["messages"][1]["content"] == "half \ud83d"
    assert "水手" in path.read_text(encoding="utf-8")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    from strop.data.conversations import RowReader
    from strop.data.sources import read_records

    before = [sample("First.\n\u2028Second, 中文。", line=1), sample("Third.", "什么？", line=2)]
    path = tmp_path / "clean.jsonl"
    write_fixed(path, before)
    records = list(read_records(path))
    after = [RowReader().read(record) for record in records]
    assert [one.messages for one in after if isinstance(one, Conversation)] == [one.messages for one in before]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "clean.jsonl"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is there already"):
        write_fixed(path, [sample("One.")])
    assert path.read_text(encoding="utf-8") == "mine"

    def broken() -> object:
        yield sample("One.")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_fixed(path, broken(), overwrite=True)  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["clean.jsonl"]
    assert write_fixed(path, [sample("One.")], overwrite=True) == 1
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    with pytest.raises(UsageError, match="cannot be written"):
        write_fixed(tmp_path / "nowhere" / "clean.jsonl", [])


def test_every_kind_that_is_fixed_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in FIXED if f'"{kind}"' not in text and kind != "held-out-overlap"] == []
