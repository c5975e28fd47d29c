"""The seven data faults of the tutorial that Strop started from, each on a MATH folder that has it, each by its name.

The tutorial tunes InternLM-chat-7b on MATH by a script. Its prompts are `<s><|System|>:…\\n<|User|>:…\\n<|Bot|>:` and
its answers were meant to end in a stop token. What was wrong, and where Strop says so:

    1  answers end in <s></s>: BOS is learned                           bos-learned
    2  the model's own stop token <eoa> is never trained                wrong-stop
    3  cut at 512 tokens, answers lose their ends                       "longer than …" (refused), answers-cut
    4  the walk over MATH takes train and test                          "holds several splits", test-in-training
    5  SYSTEM reaches chat and never the data                           by construction; else refused
    6  the questions to evaluate by are training items                  asked-in-training
    7  padding is recognised by its number, id 0 or the stop token's    by construction; no-learned-stop
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.data.checks import check_places, check_questions, check_samples
from strop.data.examples import Dataset, prepare
from strop.data.packing import NO_TARGET, pack
from strop.data.tokenizer import Tokenizer
from strop.errors import InputError, TemplateError
from strop.recipe.schema import DataSection
from tiny_tokenizers import write_folder

PROFESSOR = "You're a professor of mathematics."
INTERNLM = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- '<|System|>:' + message.content + '\\n' }}
    {%- elif message.role == 'user' %}{{- '<|User|>:' + message.content + '\\n' }}
    {%- else %}{{- '<|Bot|>:' + message.content + '<eoa>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Bot|>:' }}{%- endif %}
"""
STYLE: dict[str, Any] = {"special": ["<unk>", "<s>", "</s>", "<eoa>"], "bos": "<s>", "eos": "</s>"}


def tokenizer_with(folder: Path, template: str = INTERNLM, **config: str) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(folder / "model", {**STYLE, "template": template}, **config))


@pytest.fixture
def math(tmp_path: Path) -> Path:
    """A folder as MATH is laid out: a file a problem, train and test beside each other."""
    for part, count in (("train", 12), ("test", 6)):
        for subject in ("algebra", "prealgebra"):
            folder = tmp_path / "MATH" / part / subject
            folder.mkdir(parents=True)
            for number in range(count):
                n = number + (100 if part == "test" else 0)
                problem = f"In {subject}, what is {n} + {n}?"
                row = {"problem": problem, "level": "Level 1", "type": subject}
                row["solution"] = "We add. " * (number % 5) + f"It is $\\boxed{{{2 * n}}}$."
                (folder / f"{number}.json").write_text(json.dumps(row), "utf-8")
    return tmp_path / "MATH"


def data(folder: Path, tokenizer: Tokenizer, **section: Any) -> Dataset:
    return prepare(DataSection(train=str(folder), system=PROFESSOR, **section), tokenizer, seed=0)


def names(dataset: Dataset) -> set[str]:
    return {finding.kind for finding in dataset.findings if finding.severity != "note"}


def test_the_right_way_has_no_finding(math: Path, tmp_path: Path) -> None:
    dataset = data(math / "train", tokenizer_with(tmp_path))
    assert (len(dataset.learned) + len(dataset.held_out), dataset.refused, names(dataset)) == (24, [], set())


def test_1_a_response_that_ends_in_a_beginning(math: Path, tmp_path: Path) -> None:
    template = INTERNLM.replace("message.content + '<eoa>\\n'", "message.content + '<s></s>'")
    with pytest.raises(TemplateError, match=r"json: <s>, which begins texts, would be learned"):
        data(math / "train", tokenizer_with(tmp_path, template))


def test_2_a_stop_token_that_is_not_the_model_s(math: Path, tmp_path: Path) -> None:
    template = INTERNLM.replace("'<eoa>\\n'", "'</s>'")
    dataset = data(math / "train", tokenizer_with(tmp_path, template))
    assert names(dataset) == {"wrong-stop"}
    assert "<eoa>" in dataset.findings[-1].what or "<eoa>" in dataset.findings[0].what


def test_2_no_stop_token_at_all(math: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, INTERNLM.replace("<eoa>", ""))
    with pytest.raises(InputError) as caught:
        data(math / "train", tokenizer)
    assert "would not end the answer in a stop token" in caught.value.found


def test_3_answers_that_are_cut(math: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    lengths = sorted(len(example) for example in data(math / "train", tokenizer, eval=0).learned)
    limit = lengths[len(lengths) // 2]
    refused = data(math / "train", tokenizer, eval=0, max_tokens=limit)
    assert {refusal.reason for refusal in refused.refused} == {f"longer than {limit} tokens"}
    cut = data(math / "train", tokenizer, eval=0, max_tokens=limit, overlong="cut_end")
    (finding,) = [finding for finding in cut.findings if finding.kind == "answers-cut"]
    # One token more than the limit is the line break behind the stop token, which nobody needs.
    assert finding.count == sum(length > limit + 1 for length in lengths)
    assert len(refused.refused) == sum(length > limit for length in lengths)
    with pytest.raises(InputError, match="without its stop token"):
        data(math / "train", tokenizer, eval=0, max_tokens=lengths[0] - 2, overlong="cut_end")


def test_4_train_and_test_in_one(math: Path, tmp_path: Path) -> None:
    """A folder of both is refused where it is read (`strop.data.sources`); two sources in one are named here."""
    tokenizer = tokenizer_with(tmp_path)
    with pytest.raises(InputError, match="holds several splits"):
        data(math, tokenizer, eval=0)
    parts = [data(math / part, tokenizer, eval=0).learned for part in ("train", "test")]
    (finding,) = check_places([*parts[0], *parts[1]])
    assert (finding.kind, finding.count) == ("test-in-training", 12)
    assert "/test/" in finding.instances[0].place.file


def test_5_the_system_prompt_is_in_every_sample_or_the_run_is_refused(math: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    for example in data(math / "train", tokenizer).learned:
        assert f"<s><|System|>:{PROFESSOR}\n<|User|>:" in tokenizer.decode(example.tokens.tolist())
    deaf = INTERNLM.replace("{{- '<|System|>:' + message.content + '\\n' }}", "")
    with pytest.raises(InputError) as caught:
        data(math / "train", tokenizer_with(tmp_path / "deaf", deaf))
    assert "leaves out the system prompt" in caught.value.found


def test_6_questions_that_are_training_items(math: Path, tmp_path: Path) -> None:
    learned = data(math / "train", tokenizer_with(tmp_path), eval=0).learned
    asked = ["In algebra, what is 3 + 3?", "In prealgebra,  what is 5 + 5?", "What is 1 + 1?"]
    (finding,) = check_questions(asked, learned)
    assert (finding.kind, finding.count) == ("asked-in-training", 2)


def test_7_no_token_is_left_out_for_its_number(math: Path, tmp_path: Path) -> None:
    """pad_token = eos_token, and a token with the id 0 within an answer: both are learned where they stand."""
    tokenizer = tokenizer_with(tmp_path, INTERNLM.replace("'<eoa>\\n'", "eos_token"), pad_token="</s>")
    (math / "train" / "algebra" / "zero.json").write_text(
        json.dumps({"problem": "Zero?", "solution": "It is 0: !"}), "utf-8"
    )
    dataset = data(math / "train", tokenizer, eval=0)
    assert names(dataset) == {"wrong-stop"}
    for one in pack(dataset.learned, 400):
        stops = int((one.targets_T == tokenizer.eos).sum())
        assert stops == len(one.sample_ids_D)
    example = dataset.learned[0]
    zero = np.array([*example.tokens[:-1], 0, example.tokens[-1]], np.int32)
    (one,) = pack([type(example)(zero, np.append(example.learned, True), 0, example.place)], 400)
    assert 0 in one.targets_T[one.targets_T != NO_TARGET]
    masked = [type(example)(example.tokens, example.learned & (example.tokens != tokenizer.eos), 0, example.place)]
    (finding,) = check_samples(masked, tokenizer)
    assert "it is the padding token too" in finding.instances[0].text
