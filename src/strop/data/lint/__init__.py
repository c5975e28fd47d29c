"""What is wrong with a data set, found in one pass: `lint`; and repaired where there is one way to do it: `fix`.

    check       all checks over a data set
    kinds       every kind of finding: how bad, in what words, what to do
    cases       what was found, by kind, as findings
    characters  many texts as one array of code points, and marks that say which checks a text needs
    encoding    wrong encodings and escapes, and their repair
    answers     answers that are empty, cut off or refused
    turns       who speaks when, and what the system is told
    leftovers   chat templates, control tokens and HTML inside the text
    private     secrets and personal data, and how they are masked
    languages   languages, by script
    repeats     equal samples, equal questions
    sketches    MinHash sketches of samples, and the pairs that they propose
    near        near duplicates
    leaks       held-out questions in the training data
    fix         what can be repaired or dropped, with an account of it
    write       the cleaned data as .jsonl

docs/data-lint.md shows every kind.
"""

from __future__ import annotations

from strop.data.lint.check import lint
from strop.data.lint.fix import Change, Fixed, fix
from strop.data.lint.kinds import FIXED, KINDS, Kind
from strop.data.lint.write import write_fixed

__all__ = ["FIXED", "KINDS", "Change", "Fixed", "Kind", "fix", "lint", "write_fixed"]
