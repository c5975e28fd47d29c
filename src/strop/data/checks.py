"""Refusals that save a run: what a data set would teach that nobody means, found before anything is loaded.

    check_template   marks of another model's template, an end of turns that the template never writes, no BOS
    check_samples    nothing learned, no learned stop token, padding as stop token, BOS twice or learned, answers cut
    check_prompts    the prompt that was trained against the prompt that chat sends, token by token
    check_places     a folder that holds the test data too
    check_questions  questions to watch a run by that it learns
    check_held_out   fewer samples held out than the recipe asks for
    leaks            samples to learn that are held out as well, but for spaces, case and forms of characters

Most of this cannot happen by construction (`strop.data.segments`); here it is looked at once more, at the tokens that
the training step will see. A finding of the severity ``stop`` is raised as an error, with the sample, or kept for who
only looks at the data: `Faults`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from strop.data.digests import normal, said
from strop.data.findings import Finding, Instance, Severity
from strop.data.marks import DOUBLED, ENDLESS, NOTHING, OPENED, PADDED, STOPS, UNLEARNED, marks
from strop.data.records import Example, Message, Place, Refusal
from strop.data.samples import files_of, places_in
from strop.data.segments import Learn
from strop.data.thinking import answers_thinking
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation, encode_prompt
from strop.errors import DataError, TemplateError

_INSTANCES = 5
_PROMPTS = 16
"""Samples whose prompt is asked for once more: 20 ms."""

_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<(?:start|end)_of_turn>|<eo[ah]>|<[be]os>")
_TOKENS_AT_HOME = {
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    *("<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "<bos>", "<eos>", "<eoa>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
}
"""Marks that are single tokens in every model whose own template writes them; ``<|user|>`` is not, in Zephyr."""

_ENDS_OF_TURNS = ("<eoa>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
_TRAINING, _TEST = {"train", "training"}, {"test", "testing", "eval", "validation", "valid", "val", "dev"}
_DATA_KINDS = {"nothing-learned", "held-out-in-training"}


def raise_stops(findings: Sequence[Finding]) -> None:
    """Refuse a run on the first finding that stops it.

    Raises:
        DataError, TemplateError: with the sample's place, what was seen there and what to do.
    """
    for finding in findings:
        if finding.severity == "stop":
            first = finding.instances[0] if finding.instances else None
            error = DataError if finding.kind in _DATA_KINDS else TemplateError
            where = f"{first.place}: " if first and first.place.file else ""
            found = f"{first.text}; {finding.count} in all" if first else ""
            raise error(where + finding.what, found=found, do=finding.do)


class Faults:
    """What is noticed about a data set, one thing after another.

    Args:
        stop: raise what a run is refused for, rather than keep it.

    Attributes:
        findings: what was noticed so far.
    """

    def __init__(self, *, stop: bool) -> None:
        self._stop = stop
        self.findings: list[Finding] = []

    def add(self, findings: Sequence[Finding]) -> None:
        """Take in findings.

        Raises:
            DataError, TemplateError: as `raise_stops`.
        """
        if self._stop:
            raise_stops(findings)
        self.findings += findings

    def stops(self, kind: str, error: DataError, refused: Sequence[Refusal] = ()) -> None:
        """Take in a fault of the whole data set, of which the records are that are refused.

        Raises:
            DataError: this one.
        """
        if self._stop:
            raise error
        instances = tuple(Instance(one.place, one.reason) for one in refused[:_INSTANCES])
        self.findings.append(Finding(kind, "stop", error.what, error.do, len(refused), instances))

    def nothing_left(self, path: str, purpose: str, read: int, numbered: Sequence[tuple[int, Refusal]]) -> None:
        """No sample is left: with the three most frequent reasons and the cure of the first.

        Raises:
            DataError: just that.
        """
        refused = [refusal for _, refusal in numbered]
        reasons = Counter(refusal.reason for refusal in refused).most_common(3)
        counted = "; ".join(f"{count} × {reason}" for reason, count in reasons)
        cure = next((refusal.cure for refusal in refused if refusal.reason == reasons[0][0]), "")
        error = DataError(
            f"{path}: nothing is left to {purpose}",
            expected="at least one record that can be used",
            found=f"{read} read, {len(refused)} refused: {counted}",
            do=cure or "give more data",
        )
        self.stops("nothing-left", error, refused)


def check_template(tokenizer: Tokenizer) -> list[Finding]:
    """Look at what the template writes around a question and its answer."""
    template, backend = tokenizer.template, tokenizer.backend
    probe = (Message("system", "system"), Message("user", "question"), Message("assistant", "answer"))
    try:
        text = template.render(probe, add_generation_prompt=False)
    except TemplateError:  # many take no system turn
        text = template.render(probe[1:], add_generation_prompt=False)
    nowhere = Place(template.name)
    findings = []
    unknown = [mark for mark in dict.fromkeys(_MARK.findall(text)) if backend.token_to_id(mark) is None]
    foreign = [mark for mark in unknown if mark in _TOKENS_AT_HOME]
    if foreign:
        findings.append(
            Finding(
                "other-models-template",
                "stop",
                f"the template is another model's: {', '.join(foreign)} "
                f"{'is no token' if len(foreign) == 1 else 'are no tokens'} of this tokenizer",
                "use the template that belongs to the model, or add these tokens to tokenizer.json",
                len(foreign),
                (Instance(nowhere, f"{foreign[0]} would be {len(tokenizer.encode(foreign[0], special=True))} tokens"),),
            )
        )
    elif unknown:
        findings.append(
            Finding(
                "marks-that-are-text",
                "note",
                f"the template writes {', '.join(unknown)}, which the tokenizer reads as ordinary text",
                "nothing, if the model was trained that way (InternLM-chat, Zephyr); else use its own template",
                len(unknown),
                (Instance(nowhere, unknown[0]),),
            )
        )
    unused = [end for end in _ENDS_OF_TURNS if backend.token_to_id(end) is not None and end not in text]
    unused = [end for end in unused if end not in tokenizer.stop_tokens]
    if unused:
        findings.append(
            Finding(
                "wrong-stop",
                "warn",
                f"answers end in {' or '.join(tokenizer.stop_tokens) or 'nothing'}, but the model has {unused[0]}, "
                "which ends turns where it is used",
                "look at the template of the model's own chat version; it should end an assistant's turn in that token",
                1,
                (Instance(nowhere, text[-60:]),),
            )
        )
    before = tokenizer.segmenter.before_texts
    if before and not text.startswith(before):
        findings.append(
            Finding(
                "missing-bos",
                "warn",
                f"the tokenizer puts {before} before every text, the template does not",
                "begin the template with {{ bos_token }}, if the model was trained with it",
                1,
                (Instance(nowhere, text[:60]),),
            )
        )
    return findings


def check_samples(
    examples: Sequence[Example], tokenizer: Tokenizer, *, learn: Learn = "answers", cut_end: bool = False
) -> list[Finding]:
    """Look at the tokens and at what of them is learned.

    Args:
        examples: learned and held out samples.
        tokenizer: the model's tokenizer.
        learn: the recipe's ``data.learn``.
        cut_end: whether the recipe allows that answers lose their ends.
    """
    marks_S = marks(examples, tokenizer, learn)
    stops = " or ".join(tokenizer.stop_tokens)
    bos = tokenizer.template.tokens.get("bos_token", "BOS")
    pad = tokenizer.template.tokens.get("pad_token", "padding")
    no_end: Severity = "warn" if cut_end and (marks_S & STOPS).any() else "stop"
    kinds: list[tuple[str, Severity, int, str, str]] = [
        ("nothing-learned", "stop", NOTHING, "nothing of it would be learned", "drop it, or raise max_tokens"),
        (
            "answers-cut" if no_end == "warn" else "no-learned-stop",
            no_end,
            ENDLESS,
            "an answer is cut at data.max_tokens, its stop token with it"
            if no_end == "warn"
            else "an answer would be learned without its stop token",
            "raise data.max_tokens, or set data.overlong to refuse or cut_prompt"
            if cut_end
            else f"look at this row, and at what the chat template puts behind an answer: one of {stops}",
        ),
        (
            "pad-as-stop",
            "stop",
            PADDED,
            f"answers end in {pad}, which is the padding token and not the model's end",
            "let the template end the assistant's turn in {{ eos_token }}, or name another pad_token",
        ),
        (
            "double-bos",
            "stop",
            DOUBLED,
            f"{bos} stands twice in a row: the template writes what something else writes as well",
            "take one of the two out of the template",
        ),
        (
            "bos-learned",
            "stop",
            OPENED,
            f"{bos}, which begins texts, would be learned as a part of answers",
            "take it out of what the template writes behind or before an answer",
        ),
        (
            "answers-only-read",
            "warn",
            UNLEARNED,
            f"{np.count_nonzero(marks_S & UNLEARNED)} samples have answers that are read and not learned, since the "
            "template rewrites earlier turns",
            "to learn them too, give a row for each answer, with the turns before it",
        ),
    ]
    findings = []
    for kind, severity, mark, what, do in kinds:
        numbers = np.flatnonzero(marks_S & mark).tolist()
        if numbers:
            shown = [examples[number] for number in numbers[:_INSTANCES]]
            instances = tuple(Instance(example.place, _end(example, tokenizer, pad)) for example in shown)
            findings.append(Finding(kind, severity, what, do, len(numbers), instances))
    return findings


def check_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, *, learn: Learn = "answers", count: int = _PROMPTS
) -> list[Finding]:
    """Hold the beginning of some samples, evenly spread, to the prompt that chat would send."""
    wrong = []
    count = min(count, len(examples))
    for index in range(count):
        example = examples[index * len(examples) // count]
        conversation = example.conversation
        if conversation is None or not conversation.messages:
            continue
        if len(encode_conversation(tokenizer, conversation, learn).tokens) != len(example):
            continue  # its text was shortened to fit, and is asked in another form
        thinking = answers_thinking(conversation)
        prompt = encode_prompt(tokenizer, conversation.messages[:-1], conversation.tools, thinking=thinking)
        start = example.tokens[: len(prompt)]
        if not np.array_equal(start, prompt):
            at = int(np.argmax(start != prompt[: len(start)])) if len(start) else 0
            chat, trained = (tokenizer.decode(tokens[at : at + 8].tolist()) for tokens in (prompt, start))
            wrong.append(Instance(example.place, f"from token {at} chat sends {chat!r}, trained is {trained!r}"))
    if not wrong:
        return []
    what = "the prompt that chat would send is not the prompt that would be trained"
    do = "use a template whose prompt is the beginning of what it renders with the answer"
    return [Finding("prompt-differs", "stop", what, do, len(wrong), tuple(wrong[:_INSTANCES]))]


def check_places(examples: Sequence[Example]) -> list[Finding]:
    """Look whether the samples to learn come from folders of training and of test data."""
    files = files_of(examples)
    test = sorted(file for file in files if _parts(file) & _TEST and not _parts(file) & _TRAINING)
    if not test or not any(_parts(file) & _TRAINING for file in files):
        return []
    places = places_in(examples, set(test))
    return [
        Finding(
            "test-in-training",
            "warn",
            f"{len(places)} samples to learn come from test data: no score on it will mean anything",
            "give the folder of the training data alone, and the other one as data.eval",
            len(places),
            tuple(Instance(place, "test data") for place in places[:_INSTANCES]),
        )
    ]


def check_questions(questions: Sequence[str], examples: Sequence[Example]) -> list[Finding]:
    """Look whether the questions that a run is watched by (``watch.ask``) are among those that it learns."""
    asked = {normal(question): question for question in questions}
    if not asked:
        return []
    found = [
        Instance(example.place, asked[key][:80])
        for example in examples
        if example.conversation
        for message in example.conversation.messages
        if message.role == "user" and (key := normal(message.content)) in asked
    ]
    if not found:
        return []
    what = f"{len(found)} samples to learn ask what watch.ask asks: the answers will show memory, not skill"
    return [Finding("asked-in-training", "warn", what, "ask other questions", len(found), tuple(found[:_INSTANCES]))]


def check_held_out(chosen: int, count: int) -> list[Finding]:
    """Look whether as many samples are held out as the recipe asks for."""
    if chosen == count:
        return []
    what = f"{chosen or 'none'} of the {count} samples to hold out are held out: those that ask the same stay together"
    do = "give held-out samples of their own as data.eval, or data.eval 0 to hold out none"
    return [Finding("held-out-short", "warn", what, do, count - chosen)]


def leaks(learned: Sequence[Example], held_out: Sequence[Example]) -> set[int]:
    """The ids of samples to learn that are held out as well, but for spaces, case and forms of characters."""
    known = {_content(example) for example in held_out}
    return {example.id for example in learned if _content(example) in known} if known else set()


def _end(example: Example, tokenizer: Tokenizer, pad: str) -> str:
    """The end of what a sample learns, and what stands behind it, in a line."""
    learned = np.flatnonzero(example.learned)
    if not len(learned):
        return "nothing is learned"
    end = int(learned[-1]) + 1
    behind = tokenizer.decode(example.tokens[end : end + 1].tolist())
    text = f"it ends in {tokenizer.decode(example.tokens[max(end - 12, 0) : end].tolist())[-60:]!r}"
    if behind in tokenizer.stop_tokens:
        text += f", and {behind} behind it is not learned"
        text += ": it is the padding token too, and nothing may be left out by its number" if behind == pad else ""
    return text


def _parts(file: str) -> set[str]:
    """A path's folders and the stem of its file, in small letters."""
    path = PurePath(file)
    return {part.lower() for part in (*path.parts[:-1], path.stem)}


def _content(example: Example) -> bytes:
    """What a sample says, as a digest."""
    if example.conversation is None:
        return hashlib.blake2b(example.tokens.tobytes(), digest_size=16).digest()
    return said(example.conversation)
