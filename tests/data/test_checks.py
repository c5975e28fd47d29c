"""Refusals that save a run: each fault is named, with the sample and the cure, and a sound data set has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from families import STYLES, style

from strop.data.checks import (
    check_places,
    check_prompts,
    check_questions,
    check_samples,
    check_template,
    leaks,
    raise_stops,
)
from strop.data.examples import prepare
from strop.data.findings import Finding
from strop.data.records import Conversation, Example, Message, Place
from strop.data.segments import Learn
from strop.data.tokenizer import Tokenizer
from strop.data.tokens import encode_conversation
from strop.errors import DataError, TemplateError
from strop.recipe.schema import DataSection
from tiny_tokenizers import CHATML, KINDS, write_folder


def sample(tokenizer: Tokenizer, *turns: str, number: int = 0, learn: Learn = "answers", file: str = "f") -> Example:
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))
    conversation = Conversation(messages, Place(file, number + 1))
    tokens, learned, weights = encode_conversation(tokenizer, conversation, learn)
    return Example(tokens, learned, number, conversation.place, conversation, weights)


def kinds(findings: list[Finding]) -> list[tuple[str, str, int]]:
    return [(finding.kind, finding.severity, finding.count) for finding in findings]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: Tokenizer.from_folder(write_folder(root / name, style(name))))


def with_template(folder: Path, kind: str, template: str, **config: str) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(folder, kind, template=template, **config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learn", ["answers", "last", "all"])
def test_a_sound_data_set_has_no_finding(tokenizer_of: Callable[[str], Tokenizer], kind: str, learn: Learn) -> None:
    tokenizer = tokenizer_of(kind)
    examples = [sample(tokenizer, "a", "b", "c", f"{n}", number=n, learn=learn) for n in range(3)]
    findings = [
        *check_template(tokenizer),
        *check_samples(examples, tokenizer, learn=learn),
        *check_prompts(examples, tokenizer, learn=learn),
    ]
    assert kinds(findings) == []


@pytest.mark.parametrize("name", STYLES)
def test_no_family_s_own_template_is_refused(family: Callable[[str], Tokenizer], name: str) -> None:
    findings = check_template(family(name))
    assert {finding.severity for finding in findings} <= {"note"}
    assert kinds(findings) == ([("marks-that-are-text", "note", 3)] if name == "zephyr" else [])


def test_the_pass_over_all_tokens_finds_each_sample(chatml: Tokenizer) -> None:
    """More samples than a chunk, some without a learned stop token, some without anything learned."""
    good = sample(chatml, "a", "b")
    end = chatml.stop_tokens["<|im_end|>"]
    endless = replace(good, learned=good.learned & (good.tokens != end))
    empty = replace(good, learned=np.zeros(len(good), np.bool_))
    examples = [replace(good, id=n) for n in range(5000)]
    for number in (7, 2047, 2048, 4999):
        examples[number] = replace(endless, place=Place("f", number))
    examples[3000] = replace(empty, place=Place("f", 3000))
    findings = check_samples(examples, chatml)
    assert kinds(findings) == [("nothing-learned", "stop", 1), ("no-learned-stop", "stop", 4)]
    assert [one.place.line for one in findings[1].instances] == [7, 2047, 2048, 4999]
    with pytest.raises(DataError, match="f:3000: nothing of it would be learned") as caught:
        raise_stops(findings)
    assert caught.value.do
    with pytest.raises(TemplateError, match="f:7: an answer would be learned without its stop token"):
        raise_stops(findings[1:])


def test_learning_everything_needs_a_learned_stop_too(chatml: Tokenizer) -> None:
    good = sample(chatml, "a", "b", learn="all")
    end = chatml.stop_tokens["<|im_end|>"]
    assert not check_samples([good], chatml, learn="all")
    bad = replace(good, learned=good.learned & (good.tokens != end))
    assert kinds(check_samples([bad], chatml, learn="all")) == [("no-learned-stop", "stop", 1)]


def test_a_stop_token_that_is_left_out_as_padding_is_named(tmp_path: Path) -> None:
    """What tools do that mask by number: pad_token = eos_token, and then every pad is ignored."""
    tokenizer = with_template(tmp_path, "chatml", CHATML, pad_token="<|im_end|>")
    good = sample(tokenizer, "a", "b")
    assert not check_samples([good], tokenizer), "that they are one is no fault by itself"
    masked = replace(good, learned=good.learned & (good.tokens != tokenizer.stop_tokens["<|im_end|>"]))
    (finding,) = check_samples([masked], tokenizer)
    assert finding.kind == "no-learned-stop"
    assert "<|im_end|> behind it is not learned: it is the padding token too" in finding.instances[0].text


def test_padding_as_stop_token(tmp_path: Path) -> None:
    template = CHATML.replace("+ '<|im_end|>\\n' -}}\n{%- endfor", "+ '<|endoftext|>\\n' -}}\n{%- endfor")
    tokenizer = with_template(tmp_path, "chatml", template, pad_token="<|endoftext|>")
    found = check_samples([sample(tokenizer, "a", "b")], tokenizer)
    assert ("pad-as-stop", "stop", 1) in kinds(found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("{{- bos_token }}", "{{- bos_token + bos_token }}"), ("double-bos", "stop", 1)),
        (
            (
                "message.content | trim + '<|eot_id|>' }}{%- endgen",
                "message.content | trim + bos_token + '<|eot_id|>' }}{%- endgen",
            ),
            ("bos-learned", "stop", 1),
        ),
        (("{{- bos_token }}", ""), None),
    ],
)
def test_beginnings_of_texts(tmp_path: Path, change: tuple[str, str], expected: tuple[str, str, int] | None) -> None:
    from strop.data.template import ChatTemplate  # the template must be another one, or the test tests nothing

    template = KINDS["llama3"]["template"].replace(*change)
    assert template != KINDS["llama3"]["template"]
    assert ChatTemplate(template, {})
    tokenizer = with_template(tmp_path, "llama3", template)
    assert kinds(check_samples([sample(tokenizer, "a", "b")], tokenizer)) == ([expected] if expected else [])


def test_a_beginning_that_the_template_lacks(tmp_path: Path) -> None:
    from tokenizers import processors

    folder = write_folder(tmp_path, "llama3", template=KINDS["llama3"]["template"].replace("{{- bos_token }}", ""))
    tokenizer = Tokenizer.from_folder(folder)
    bos = tokenizer.special_tokens["<|begin_of_text|>"]
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    assert kinds(check_template(Tokenizer.from_folder(folder))) == [("missing-bos", "warn", 1)]


def test_another_model_s_template(tmp_path: Path) -> None:
    """ChatML's on the tokenizer of a Llama 2, mended so far that answers do end."""
    template = CHATML.replace("message['content'] + '<|im_end|>\\n'", "message['content'] + '<|im_end|>' + eos_token")
    tokenizer = with_template(tmp_path, "llama2", template)
    (finding, *_) = check_template(tokenizer)
    assert (finding.kind, finding.severity) == ("other-models-template", "stop")
    assert "<|im_start|>, <|im_end|> are no tokens of this tokenizer" in finding.what
    with pytest.raises(TemplateError, match="the template is another model's"):
        raise_stops([finding])


def test_a_stop_token_that_is_not_the_model_s(tmp_path: Path) -> None:
    template = CHATML.replace("+ '<|im_end|>\\n' -}}\n{%- endfor", "+ '<|endoftext|>\\n' -}}\n{%- endfor").replace(
        "Be kind.<|im_end|>", "Be kind."
    )
    folder = write_folder(tmp_path, {**KINDS["chatml"], "eos": "<|endoftext|>", "template": template})
    (finding,) = check_template(Tokenizer.from_folder(folder))
    assert (finding.kind, finding.severity) == ("wrong-stop", "warn")
    assert "answers end in <|endoftext|>, but the model has <|im_end|>" in finding.what


def test_a_prompt_that_chat_would_not_send(chatml: Tokenizer) -> None:
    good = sample(chatml, "What is it?", "It.")
    assert not check_prompts([good], chatml)
    tokens = good.tokens.copy()
    tokens[3] = tokens[4]
    (finding,) = check_prompts([good, replace(good, tokens=tokens, place=Place("f", 9))], chatml)
    assert (finding.kind, finding.severity, finding.count) == ("prompt-differs", "stop", 1)
    assert finding.instances[0].place.line == 9
    assert "from token 3 chat sends" in finding.instances[0].text


def test_answers_that_are_only_read_are_counted(family: Callable[[str], Tokenizer]) -> None:
    tokenizer = family("qwen3")
    examples = [sample(tokenizer, "a", "b"), sample(tokenizer, "a", "b", "c", "d", number=1)]
    assert kinds(check_samples(examples, tokenizer)) == [("answers-only-read", "warn", 1)]
    assert not check_samples(examples, tokenizer, learn="last")


def test_rows_that_weigh_their_parts_may_leave_out_the_end(chatml: Tokenizer) -> None:
    from strop.data.records import Span

    messages = (Message("user", "a"), Message("assistant", "b c", weight=0.0, spans=(Span(0, 1, 1.0),)))
    conversation = Conversation(messages, Place("f", 1))
    tokens, learned, weights = encode_conversation(chatml, conversation)
    assert not check_samples([Example(tokens, learned, 0, conversation.place, conversation, weights)], chatml)


def test_what_is_held_out_is_not_learned_in_another_spelling(tmp_path: Path, chatml: Tokenizer) -> None:
    held = sample(chatml, "What is  it?", "ＩＴ is.", number=9)
    learned = [sample(chatml, "what is it?", "It is.", number=1), sample(chatml, "what is it?", "No.", number=2)]
    assert leaks(learned, [held]) == {1}
    assert leaks(learned, []) == set()
    file, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = [{"question": f"What is {n}?", "answer": "It"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other.write_text(json.dumps({"question": "what IS 2? ", "answer": "it"}) + "\n")
    dataset = prepare(DataSection(train=str(file), eval=str(other)), chatml, seed=0)
    assert [(refusal.place.line, refusal.reason) for refusal in dataset.refused] == [
        (3, "it is in the held-out data as well")
    ]
    assert dataset.read == len(dataset.learned) + len(dataset.refused) == 4


def test_test_data_in_the_folder_to_learn_from(chatml: Tokenizer) -> None:
    files = ["MATH/train/algebra/1.json", "MATH/test/algebra/1.json", "MATH/train/algebra/2.json"]
    examples = [sample(chatml, "a", str(number), file=file) for number, file in enumerate(files)]
    (finding,) = check_places(examples)
    assert kinds([finding]) == [("test-in-training", "warn", 1)]
    assert finding.instances[0].place.file == files[1]
    assert not check_places(examples[::2])
    assert not check_places(examples[1:2]), "whoever learns from a test folder alone says so"


def test_questions_to_watch_by_that_are_learned(chatml: Tokenizer) -> None:
    examples = [sample(chatml, "What is 2 + 2?", "4"), sample(chatml, "b", "c", number=1)]
    assert kinds(check_questions(["what is  2 + 2?", "Else?"], examples)) == [("asked-in-training", "warn", 1)]
    assert not check_questions(["Else?"], examples)
    assert not check_questions([], examples)
