"""What is wrong with a conversation as a whole: who speaks when, and what the system is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from strop.data.lint.cases import Cases
from strop.data.records import Conversation, Message


def check_order(cases: Cases, row: int, messages: Sequence[Message]) -> None:
    """Hold a conversation to system? (user assistant)+, with calls of tools and their results between."""
    fault = _fault(messages)
    if fault:
        roles = " ".join(message.role for message in messages[:12])
        cases.add("role-order", row, f"{fault}: {roles}{' …' if len(messages) > 12 else ''}")


def _fault(messages: Sequence[Message]) -> str:
    before: Message | None = None
    for number, message in enumerate(messages):
        role = message.role
        if role == "system" and number:
            return f"turn {number + 1} is a system turn"
        if role == "assistant" and (before is None or before.role == "system"):
            return "an answer comes before any question"
        if role == "tool" and not (before and (before.role == "tool" or before.calls)):
            return f"turn {number + 1} is the result of a tool that was not called"
        # An answer that calls tools may be followed by another one only through their results.
        if before is not None and role == before.role and role in ("user", "assistant"):
            return f"turns {number} and {number + 1} are both of the {role}"
        before = message
    if before is not None and before.role != "assistant":
        return f"the last turn is of the {before.role}"
    return ""


class SystemPrompts:
    """Counts system prompts while the samples pass by."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int]] = []
        self._counts: Counter[int] = Counter()
        self._texts: dict[int, str] = {}

    def add(self, row: int, messages: Sequence[Message]) -> None:
        """Let a sample pass by."""
        text = messages[0].content if messages and messages[0].role == "system" else ""
        key = hash(text) if text else 0
        self._rows.append((row, key))
        self._counts[key] += 1
        if key not in self._texts:
            self._texts[key] = text[:96]

    def report(self, cases: Cases, learned: Sequence[Conversation]) -> None:
        """Say which samples have none, or another one than most."""
        if len(self._counts) < 2:
            return
        prompts = [key for key in self._counts if key]
        usual = max(prompts, key=self._counts.__getitem__)  # of several as frequent, the one that came first
        for row, key in self._rows:
            if key == 0:
                question = next((m.content for m in learned[row].messages if m.role == "user"), "")
                cases.add("system-prompt-missing", row, question, end=0)
            elif key != usual:
                cases.add("system-prompts-differ", row, self._texts[key])
        if len(prompts) > 1:
            kinds = f"There are {len(prompts):,} different ones"
            cases.detail("system-prompts-differ", f"{kinds}; {self._counts[usual]:,} samples have the most frequent.")
