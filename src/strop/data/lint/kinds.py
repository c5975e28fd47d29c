"""Every kind of thing that lint looks for: how bad it is, how it is said, what to do, and what --fix does.

This table is the only place where a kind is named in words; docs/data-lint.md shows it and a test holds the two
together. ``says`` is a sentence in which ``{share}`` becomes "3 of 7,473 samples".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strop.data.findings import Severity


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Args:
        name: as ``--json`` has it.
        severity: what it means for a run.
        says: the finding in a sentence, with ``{share}`` where the count stands.
        do: the cure.
        fix: what ``fix`` does with such a sample, in a few words; empty where it leaves it.
    """

    name: str
    severity: Severity
    says: str
    do: str
    fix: str = ""


_ALL = (
    Kind(
        "held-out-in-training",
        "stop",
        "The question of a held-out sample is asked in {share}.",
        "drop them from the training data, or hold out others: a held-out loss on learned questions proves nothing",
        "dropped",
    ),
    Kind(
        "held-out-overlap",
        "warn",
        "Most of a held-out question, with the same numbers, stands in {share}.",
        "look at the pairs, and drop them from the training data",
        "dropped",
    ),
    Kind(
        "exact-duplicates",
        "warn",
        "The same conversation stands earlier in the data in {share}.",
        "drop them, unless they are meant to be learned more than once",
        "dropped; the first stays",
    ),
    Kind(
        "near-duplicates",
        "warn",
        "Nearly the same conversation, numbers included, stands earlier in the data in {share}.",
        "look at the pairs, and drop those that add nothing",
    ),
    Kind(
        "same-but-for-numbers",
        "note",
        "Nearly the same conversation with other numbers stands earlier in the data in {share}.",
        "nothing, if they are meant as variations",
    ),
    Kind(
        "contradicting-answers",
        "warn",
        "A question that has another answer elsewhere is asked in {share}.",
        "find out which answer is right, and drop the other",
    ),
    Kind(
        "repeated-questions",
        "note",
        "A question that is asked elsewhere, and answered in other words, is asked in {share}.",
        "nothing, if several answers are meant",
    ),
    Kind(
        "empty-answers",
        "warn",
        "An answer is empty in {share}.",
        "give the answers, or drop the samples",
        "dropped",
    ),
    Kind(
        "one-word-answers",
        "note",
        "An answer is a single word, where most are longer, in {share}.",
        "see whether the answer is all there",
    ),
    Kind(
        "unclosed-markup",
        "warn",
        "A code block, formula, \\boxed{{}} or environment is opened and never closed in an answer of {share}.",
        "complete the answers or drop them: a model learns to stop where they stop",
    ),
    Kind(
        "cut-answers",
        "warn",
        "An answer ends in the middle of a sentence in {share}.",
        "complete the answers or drop them: a model learns to stop where they stop",
    ),
    Kind(
        "no-sentence-end",
        "note",
        "An answer ends without a sentence end, where nearly all others have one, in {share}.",
        "see whether the answer is all there",
    ),
    Kind(
        "cut-at-one-length",
        "warn",
        "An answer is exactly as long as many others and ends in the middle of a sentence in {share}.",
        "make the data again without the limit: something has cut it at this length",
    ),
    Kind(
        "role-order",
        "warn",
        "The turns are not question and answer in turn in {share}.",
        "give a system turn first, if any, then user and assistant in turn",
    ),
    Kind(
        "system-prompt-missing",
        "warn",
        "There is no system prompt, though others have one, in {share}.",
        "give one to all with --data.system, or to none",
    ),
    Kind(
        "system-prompts-differ",
        "note",
        "The system prompt is not the most frequent one in {share}.",
        "nothing, if the prompts are meant to differ; --data.system sets one for all",
    ),
    Kind(
        "mojibake",
        "warn",
        "Text was decoded with the wrong encoding in {share}.",
        "read the source again as UTF-8, or let --fix repair what can be repaired",
        "repaired where encoding it again gives back the same text, else left",
    ),
    Kind(
        "replacement-characters",
        "warn",
        "Characters are lost, and U+FFFD stands in their place, in {share}.",
        "read the source again in its own encoding; what is lost cannot be repaired",
    ),
    Kind(
        "broken-surrogates",
        "warn",
        "Half a surrogate pair, which is not a character, stands in {share}.",
        "write the JSON again without \\ud8xx escapes",
        "two halves that belong together are joined, single ones left",
    ),
    Kind(
        "lost-backslashes",
        "warn",
        "A LaTeX command lost its backslash to a JSON or Python escape (\\f of \\frac, \\b of \\boxed) in {share}.",
        "write the backslashes double in the source, or let --fix repair it",
        "the backslash is put back",
    ),
    Kind(
        "control-characters",
        "warn",
        "Control characters stand in {share}.",
        "remove them, or let --fix do it",
        "removed",
    ),
    Kind(
        "invisible-characters",
        "note",
        "Characters that nobody sees (zero width, direction marks, soft hyphens) stand in {share}.",
        "remove them, or let --fix do it: they become tokens all the same",
        "removed; joiners in emoji and in scripts that need them stay",
    ),
    Kind(
        "carriage-returns",
        "note",
        "Lines end in \\r\\n or \\r in {share}.",
        "write \\n, or let --fix do it: a model would learn to write \\r",
        "written as \\n",
    ),
    Kind(
        "html-left-over",
        "note",
        "HTML tags or entities are left over in {share}.",
        "convert them to plain text or Markdown",
    ),
    Kind(
        "over-long",
        "warn",
        "There are more tokens than data.max_tokens in {share}.",
        "raise data.max_tokens, or choose what happens to them with data.overlong",
    ),
    Kind(
        "over-context",
        "warn",
        "There are more tokens than the model has positions in {share}.",
        "shorten them or drop them: the model was never made for positions that far",
    ),
    Kind(
        "template-text",
        "warn",
        "Text of a chat template stands inside the data in {share}.",
        "split the text into turns, or remove the marks: as control tokens they would be turns of their own",
    ),
    Kind(
        "control-tokens",
        "warn",
        "A control token of this model stands in the text in {share}.",
        "remove it; Strop reads it as plain text, other tools as the token itself",
    ),
    Kind(
        "secrets",
        "warn",
        "A key, token or password stands in {share}.",
        "revoke it and remove it: what is learned can be asked for",
    ),
    Kind(
        "identity-numbers",
        "warn",
        "A Chinese identity number with the right check digit stands in {share}.",
        "remove or replace it",
    ),
    Kind(
        "card-numbers",
        "warn",
        "A payment card number with the right check digit stands in {share}.",
        "remove or replace it",
    ),
    Kind(
        "e-mail-addresses",
        "note",
        "An e-mail address stands in {share}.",
        "remove or replace those of real people",
    ),
    Kind(
        "phone-numbers",
        "note",
        "A phone number stands in {share}.",
        "remove or replace those of real people",
    ),
    Kind(
        "ip-addresses",
        "note",
        "A public IP address stands in {share}.",
        "remove or replace those of real machines",
    ),
    Kind(
        "refusals",
        "note",
        "The answer refuses, or speaks as a language model, in {share}.",
        "drop them, unless the model is meant to learn when to refuse",
    ),
    Kind(
        "languages",
        "note",
        "The answer is not in the most frequent language in {share}.",
        "nothing, if several languages are meant",
    ),
    Kind(
        "answer-in-another-language",
        "note",
        "The answer is in another language than the question, which does not ask for that, in {share}.",
        "see whether question and answer belong together",
    ),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ALL}
"""All kinds by name."""

FIXED: tuple[str, ...] = tuple(kind.name for kind in _ALL if kind.fix)
"""The kinds that ``fix`` does something about."""
