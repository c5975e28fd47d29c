"""InternLM-chat-7b's own tokenizer with the stock templates: the published strings, and what is learned of them.

The strings are those of its repository, before and after January 2024, and the training row is that of the tutorial
that Strop started from: its script is written out here as it builds one, to lay beside it what Strop learns.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from strop.data.records import Conversation, Message, Place
from strop.data.stock_templates import STOCK
from strop.data.tokenizer import Tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"
SHARED = SHARED if SHARED.is_dir() else Path(__file__).parents[3].parent / "shared"
MODEL = SHARED / "data" / "internlm" / "V7_sft.model"

pytestmark = pytest.mark.skipif(
    not MODEL.is_file(), reason=f"{MODEL} is absent; test_stock_templates holds the same on made tokenizers"
)

BOS, EOS, EOH, EOA = 1, 2, 103027, 103028
PROFESSOR = "You're a professor of mathematics."
PROBLEM, SOLUTION = "What is $2+3$?", "We add: $2+3=\\boxed{5}$."


@pytest.fixture(scope="module", params=["after", "before"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    """The folder of InternLM-chat-7b, its tokenizer in Python code as far as that counts; before 2024 with <eoh>."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(MODEL, folder / "tokenizer.model")
    config = {"model_type": "internlm", "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": 103168}
    (folder / "config.json").write_text(json.dumps(config))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "tokenizer_class": "InternLMTokenizer"}))
    if request.param == "before":
        (folder / "chat_template.jinja").write_text(STOCK["internlm-eoh"].source)
    return Tokenizer.from_folder(folder)


def is_older(tokenizer: Tokenizer) -> bool:
    return "<eoh>" in tokenizer.template.source


def test_the_published_strings(tokenizer: Tokenizer) -> None:
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
    asked = tokenizer.template.render(turns, add_generation_prompt=True)
    told = tokenizer.template.render((Message("system", "meta"), turns[0]), add_generation_prompt=True)
    if is_older(tokenizer):
        assert asked == "<s><|User|>:q<eoh>\n<|Bot|>:a<eoa>\n<|User|>:r<eoh>\n<|Bot|>:"
        assert told == "<s><|System|>:meta\n<|User|>:q<eoh>\n<|Bot|>:"
    else:
        assert asked == "<s><|User|>:q\n<|Bot|>:a<eoa>\n<|User|>:r\n<|Bot|>:"
        assert told == "<s><|System|>:meta\n<|User|>:q\n<|Bot|>:"


def test_its_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<s></s><eoa>", special=True) == [BOS, EOS, EOA]
    assert tokenizer.stop_tokens == {"</s>": EOS, "<eoa>": EOA}
    assert EOH in tokenizer.encode("<eoh>", special=True)
    # <|User|> is none: five pieces, as in the tokenizer that the model was trained with.
    assert len(tokenizer.encode("<|User|>", special=True)) == 5


def script_row(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tutorial's row: prompt, answer, "<s>" by a slip of the pen, and the padding token, which is </s>."""
    prompt = f"<s><|System|>:{PROFESSOR}\n<|User|>:{PROBLEM}\n<|Bot|>:"
    read = tokenizer.encode(prompt, special=True)
    learned = [*tokenizer.encode(SOLUTION + "<s>", special=True), EOS]
    return read, learned


def test_what_the_script_learned_and_what_strop_learns(tokenizer: Tokenizer) -> None:
    turns = (Message("system", PROFESSOR), Message("user", PROBLEM), Message("assistant", SOLUTION))
    segments = tokenizer.segmenter.conversation(Conversation(turns, Place("math.json")))
    ids = [(segment.learned, tokenizer.encode(segment.text, special=True)) for segment in segments]
    learned = [index for learned, part in ids if learned for index in part]
    script_read, script_learned = script_row(tokenizer)
    answer = tokenizer.encode(SOLUTION, special=True)
    # The script: the answer, then BOS, then </s>. The stop token that the model knows is never learned.
    assert script_learned == [*answer, BOS, EOS]
    assert EOA not in script_learned
    # Strop: the answer and the model's own stop token, behind the prompt that chat sends.
    assert learned == [*answer, EOA]
    asked = [
        index for part in tokenizer.segmenter.prompt(turns[:2]) for index in tokenizer.encode(part.text, special=True)
    ]
    before = [index for learned, part in ids[: [learned for learned, _ in ids].index(True)] for index in part]
    assert asked == before
    if not is_older(tokenizer):
        assert asked == script_read
