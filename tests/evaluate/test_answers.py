"""Whether an answer is right: how its result is found, what counts as equal, and that hostile text costs nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strop.errors import StropError
from strop.evaluate import equivalence
from strop.evaluate.answers import Score, Verdict, final_answer, is_right, judge, result_given, score


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("70 + 15 = 85. The answer is $\\boxed{85}$.", "85"),
        ("$\\boxed{1}$, no: $\\boxed{\\frac{1}{2}}$ of 7", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("{ \\boxed{5} and a brace that never closes", "5"),
        ("} \\boxed{5}", "5"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\fbox{8}", "8"),
        ("so \\boxed 12$", "12"),
        ("\\boxed{4} is a step; the rest is cut off: \\boxed{4", "4"),
        ("She has 9.\n#### 1,234\n", "1,234"),
        ("#### 1\n#### 18 dollars", "18 dollars"),
        ("boxed \\boxed{2} before hashes\n#### 3", "2"),
        ("it is 1,000.", "1,000"),
        ("of 3,5,7 the last", "7"),
        ("of 1,0000 the last", "0000"),
        ("= -4.", "-4"),
        ("5-3", "3"),
        ("x-3", "3"),
        ("about -.5", "-.5"),
        ("which is 3/4 of it", "3/4"),
        ("it is 2.50 dollars", "2.50"),
        ("no result here", None),
        ("", None),
        ("\\boxed{ }", None),
    ],
)
def test_the_result_of_a_text(text: str, result: str | None) -> None:
    assert final_answer(text) == result


def test_each_way_is_looked_for_alone() -> None:
    text = "\\boxed{1}\n#### 2\nand 3"
    assert [result_given(text, way) for way in ("boxed", "hashes", "number")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("85", "85", True),
        ("85", "58", False),
        ("1/2", "0.5", True),
        ("1,000", "1000", True),
        ("1{,}000", "1000", True),
        ("10\\,000", "10000", True),
        ("-0.50", "−1/2", True),
        ("$5$", "5", True),
        ("5.", "5", True),
        ("1/0", "1", False),
        ("0.333", "1/3", False),
        ("\\frac12", "0.5", True),
        ("\\dfrac{1}{2}", "\\frac12", True),
        ("\\$5", "5", True),
        ("5\\text{ cm}", "5", True),
        ("5 apples", "5", True),
        ("x = 5", "5", True),
        ("5", "x=5", True),
        ("x = 6", "5", False),
        ("(x+1)^2", "x^2+2x+1", True),
        ("2\\sqrt{2}", "\\sqrt8", True),
        ("\\sqrt{3}", "\\sqrt{2}", False),
        ("\\text{yes}", "\\text{no}", False),
        ("", "5", False),
        ("}{", "5", False),
        ("5", "", False),
    ],
)
def test_what_counts_as_equal(answer: str, reference: str, right: bool) -> None:
    assert is_right(answer, reference) is right


def test_plain_numbers_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(answer: str, reference: str) -> bool:
        raise AssertionError("asked the library")

    monkeypatch.setattr("strop.evaluate.answers.are_equivalent", never)
    assert is_right("1,000", "1000.0")
    assert not is_right("3", "4")
    assert is_right("\\frac{a}{b}", "\\frac{a}{b}")


@pytest.mark.parametrize(
    "tower",
    [
        "9^9^9^9",
        "9^{9^{9^9}}",
        "(9^9)^9",
        "9^{(9^{9})}",
        "9**9**9",
        "2^{99999999}",
        "99999999!",
        "9!!!!",
        "(" * 100_000,
        "1" * 100_000,
    ],
)
def test_costly_results_are_refused_before_the_library(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("strop.evaluate.answers.are_equivalent", lambda answer, _: asked.append(answer))
    assert not is_right(tower, "5")
    assert not is_right("5", tower)
    assert is_right(tower, tower)
    assert asked == []


@pytest.mark.parametrize(
    "power", ["2^{10}", "x^{2}", "e^{x^2}", "(x^2+1)^2", "(x^2)^3", "2^{x^2}", "10^{100}", "5!", "x^{n-1}"]
)
def test_ordinary_powers_reach_the_library(power: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("strop.evaluate.answers.are_equivalent", lambda answer, _: asked.append(answer))
    is_right(power, "7")
    assert asked == [power]


def worker_that_runs(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="ascii",
    )


def test_what_the_guards_let_through_is_ended_by_the_watchdog_and_the_next_question_works() -> None:
    impatient = "from strop.evaluate import equivalence as e; e._SECONDS_TO_COMPARE = 1.5; e.serve()"
    worker = equivalence._Worker()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(equivalence, "_start", lambda: worker_that_runs(impatient))
            # No guard sits in front of this call: sympy multiplies until the watchdog ends it.
            assert worker.ask("9^{9^{9^{9}}}", "5") is False
        assert worker.ask("x+x", "2x") is True
    finally:
        worker.close()


def test_a_worker_that_died_between_two_questions_is_replaced() -> None:
    worker = equivalence._Worker()
    try:
        assert worker.ask("x+x", "2x") is True
        assert worker._process is not None
        worker._process.kill()
        assert worker.ask("x+x", "2x") is True
    finally:
        worker.close()


def test_an_interrupted_question_leaves_no_late_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = equivalence._Worker()
    exchange = equivalence._Worker._exchange

    def interrupted(process: subprocess.Popen[str], question: str) -> str:
        assert process.stdin is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
        raise KeyboardInterrupt

    try:
        monkeypatch.setattr(worker, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.ask("x+x", "2x")
        monkeypatch.setattr(worker, "_exchange", exchange)
        assert worker.ask("x+x", "3x") is False
    finally:
        worker.close()


def test_a_worker_that_cannot_start_is_an_error_and_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_start", lambda: worker_that_runs("raise SystemExit(1)"))
    with pytest.raises(StropError, match="could not be started"):
        equivalence._Worker().ask("x", "y")


def test_it_works_outside_the_main_thread_and_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[bool] = []
    with caplog.at_level(logging.DEBUG):
        threads = [
            threading.Thread(target=lambda: answers.append(is_right("\\frac{2}{4}", "\\frac{1}{2}"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [True] * 4
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_text_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = "__import__('pathlib').Path('trap').touch()"
    assert not is_right(trap, "5")
    assert not is_right(f"1 + {trap}", "x + 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "reference", "right", "loose"),
    [
        ("$\\boxed{85}$", "… $\\boxed{85}$.", True, True),
        ("It is 85.", "… $\\boxed{85}$.", False, True),
        ("#### 85", "… $\\boxed{85}$.", False, True),
        ("It is 84.", "… $\\boxed{85}$.", False, False),
        ("$\\boxed{84}$, or 85", "… $\\boxed{85}$.", False, False),
        ("\\boxed{18}", "…\n#### 18", False, True),
        ("…\n#### 18.00", "…\n#### 18", True, True),
        ("5 and 6", "it is 6", True, True),
        ("\\boxed{6}, as 3 doubled is 6", "it is 6", True, True),
        ("Paris", " Paris\n", True, True),
        ("paris, France", "Paris", False, False),
        ("", "\\boxed{5}", False, False),
    ],
)
def test_strict_and_loose(answer: str, reference: str, right: bool, loose: bool) -> None:
    assert judge(answer, reference) == Verdict(right=right, loose=loose)


def test_score_counts_both_readings() -> None:
    reference = "\\boxed{5}"
    assert score((text, reference) for text in ("\\boxed{5}", "5", "6")) == Score(right=1, asked=3, loose=2)
    assert score([]) == Score(right=0, asked=0, loose=0)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "\\boxed ", "1,000,", "1,", "####", "-", "\\", "1/", ".1", "\\boxed{1}", "9" * 3]
)
def test_long_hostile_text_is_read_in_one_pass(piece: str) -> None:
    final_answer(piece * (600_000 // len(piece)))
