"""sentencepiece models as tokenizers: token for token what the library sentencepiece gives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from strop.data.tokenizer import Tokenizer
from strop.data.tokenizer_files import read_backend
from strop.errors import ModelError
from strop.vocabulary.pieces import pieces_json
from strop.vocabulary.sentencepiece_file import read_pieces

sentencepiece = pytest.importorskip("sentencepiece")

SHARED = Path(__file__).parents[2].parent / "shared"
SHARED = SHARED if SHARED.is_dir() else Path(__file__).parents[3].parent / "shared"
INTERNLM = SHARED / "data" / "internlm" / "V7_sft.model"
needs_internlm = pytest.mark.skipif(not INTERNLM.is_file(), reason="InternLM's tokenizer is not beside the checkout")

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, twice; 12 times 34 is 408.",
    "def add(a, b):\n    return a + b  # two spaces\n\n\nif __name__ == '__main__':\n\tprint(add(1, 2))",
    "距离地图上两个城市是十五英寸。比例尺是多少？答案是一百二十英里。",
    "Où est passé l'été? ÀÉÎÕÜ ﬁn ①②③ ａｂｃ",
    "👍🏽 👩‍👩‍👧 𠁓 \u200b zero width, \u00a0 no-break, \u3000 ideographic",
    "<eoh><eoa> <s></s> <unk> <|User|>:hi<eoh>\n<|Bot|>:",
    "aaaa" * 7 + "     " * 5 + "=====\n" * 3 + "哈哈哈哈哈",
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences, their pieces, and random strings over small alphabets, in which joins of equal score meet."""
    chance = random.Random(seed)
    alphabet = "ab =_-.\n哈你好0123\t'\"👍é𠁓\u3000ﬁ①"
    made = [
        "".join(chance.choice(alphabet[: chance.randint(1, len(alphabet))]) for _ in range(chance.randint(0, 60)))
        for _ in range(count)
    ]
    pieces = [sentence[chance.randint(0, 20) :][: chance.randint(0, 40)] for sentence in SENTENCES for _ in range(20)]
    return [*SENTENCES, *made, *pieces, "", " ", "  a  "]


def train(folder: Path, **options: Any) -> Path:
    """A tiny model over the sentences."""
    (folder / "text.txt").write_text("\n".join(SENTENCES * 20), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 520, "character_coverage": 0.98, **options},
    )
    return folder / "tokenizer.model"


def backend(path: Path, **options: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(pieces_json(read_pieces(path), **options)))


def plain(text: str, symbols: tuple[str, ...]) -> bool:
    return not any(symbol in text for symbol in symbols)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("bytes_too", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_tokens_are_the_librarys(tmp_path: Path, kind: str, bytes_too: bool, prefix: bool, rule: str) -> None:
    path = train(
        tmp_path,
        model_type=kind,
        byte_fallback=bytes_too,
        add_dummy_prefix=prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        vocab_size=520 if bytes_too else 260,
    )
    library, ours = sentencepiece.SentencePieceProcessor(model_file=str(path)), backend(path)
    controls = ("<s>", "</s>", "<unk>")  # the library reads none out of a text; a tokenizer does
    ties = 0
    for text in texts(300):
        if plain(text, controls):
            got, wanted = ours.encode(text, add_special_tokens=False).ids, library.encode(text)
            if kind == "unigram" and got != wanted:  # the same pieces in another order have the same score
                assert sorted(got) == sorted(wanted), repr(text)
                ties += 1
                continue
            assert got == wanted, repr(text)
    assert ties <= 20


def test_symbols_of_the_user_are_whole(tmp_path: Path) -> None:
    symbols = ["<eoh>", "<eoa>", "==", "哈哈"]
    options = {"user_defined_symbols": symbols, "normalization_rule_name": "identity", "byte_fallback": True}
    path = train(tmp_path, model_type="bpe", add_dummy_prefix=False, remove_extra_whitespaces=False, **options)
    library, ours = sentencepiece.SentencePieceProcessor(model_file=str(path)), backend(path)
    for text in texts(200):
        if plain(text, ("<s>", "</s>", "<unk>")):
            assert ours.encode(text, add_special_tokens=False).ids == library.encode(text), repr(text)
    added = {token.content: token.special for token in ours.get_added_tokens_decoder().values()}
    assert added == {"<unk>": True, "<s>": True, "</s>": True} | dict.fromkeys(symbols, False)


def test_texts_come_back(tmp_path: Path) -> None:
    path = train(tmp_path, model_type="bpe", byte_fallback=True, normalization_rule_name="identity")
    ours = backend(path)
    for text in SENTENCES:
        if "<s>" in text:
            continue
        kept = " ".join(part for part in text.split(" ") if part)
        assert ours.decode(ours.encode(kept, add_special_tokens=False).ids, skip_special_tokens=False) == kept


@pytest.mark.parametrize("legacy", [True, False])
def test_the_prefix_behind_control_tokens_is_transformers(tmp_path: Path, legacy: bool) -> None:
    """To a legacy tokenizer each stretch of text is a text of its own, to the others they are one."""
    path = train(tmp_path, model_type="bpe", byte_fallback=True, normalization_rule_name="identity")
    library, ours = sentencepiece.SentencePieceProcessor(model_file=str(path)), backend(path, legacy=legacy)
    first, second = library.encode("the fox"), library.encode("brown dog")
    behind = second if legacy else library.encode("xbrown dog")[len(library.encode("x")) :]
    got = ours.encode("the fox</s>brown dog", add_special_tokens=False).ids
    assert got == [*first, library.eos_id(), *behind]
    assert second != behind or legacy


@needs_internlm
def test_internlm_is_the_librarys_over_a_corpus() -> None:
    library, ours = sentencepiece.SentencePieceProcessor(model_file=str(INTERNLM)), backend(INTERNLM)
    notes = [path.read_text("utf-8") for path in sorted((SHARED / "notes").glob("*.md"))]
    with (SHARED / "data" / "gsm8k" / "test.jsonl").open(encoding="utf-8") as rows:
        questions = [json.loads(row)["question"] for row in rows]
    compared = 0
    for text in [*texts(500), *questions, *notes]:
        if plain(text, ("<s>", "</s>", "<unk>")):
            assert ours.encode(text, add_special_tokens=False).ids == library.encode(text), repr(text[:80])
            compared += 1
    assert compared > 1500
    assert ours.token_to_id("<eoa>") == 103028
    assert ours.get_vocab_size() == 103168


@needs_internlm
def test_a_null_character_is_a_byte() -> None:
    library, ours = sentencepiece.SentencePieceProcessor(model_file=str(INTERNLM)), backend(INTERNLM)
    assert ours.encode("a\0b", add_special_tokens=False).ids == library.encode("a\0b")


@needs_internlm
def test_internlms_answers_end_in_eoa(tmp_path: Path) -> None:
    """<eoa> is an ordinary added token to the file; the template makes it the learned stop token."""
    (tmp_path / "tokenizer.model").write_bytes(INTERNLM.read_bytes())
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>:{{ m.content }}<eoh>\n<|Bot|>:"
        "{% else %}{{ m.content }}<eoa>\n{% endif %}{% endfor %}"
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.stop_tokens == {"</s>": 2, "<eoa>": 103028}
    assert 103028 not in tokenizer.encode("the data writes <eoa>", special=False)
    assert tokenizer.encode("x<eoa>\n", special=True)[-2] == 103028


def test_names_of_the_repository_take_the_place_of_pieces(tmp_path: Path) -> None:
    """InternLM 2's <|im_end|> stands where its sentencepiece model has an unused symbol."""
    path = train(tmp_path, model_type="bpe", user_defined_symbols=["[UNUSED_1]"], byte_fallback=True)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    index, size = library.piece_to_id("[UNUSED_1]"), library.get_piece_size()
    decoder = {str(index): {"content": "<|im_end|>", "special": True}, str(size): {"content": "<tool>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<|x|>": size + 3}), "utf-8")
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|x|>"]}', "utf-8")
    ours = read_backend(tmp_path)
    assert ours.encode("the<|im_end|><tool><|x|>", add_special_tokens=False).ids[-3:] == [index, size, size + 3]
    special = {token.content for token in ours.get_added_tokens_decoder().values() if token.special}
    assert special == {"<unk>", "<s>", "</s>", "<|im_end|>", "<|x|>"}
    assert ours.token_to_id("[UNUSED_1]") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-7],
        lambda data: data[:1000],
        lambda data: b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + data,
        lambda data: b"\x0a" + b"\xff" * 12,
        lambda data: b"\x0a\x03\x0a\x01\xff",
        lambda _: b"\x0a",
        lambda _: b"",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = train(tmp_path, model_type="bpe")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match="not a sentencepiece model"):
        read_pieces(path)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="model type"):
        read_pieces(train(tmp_path, model_type=kind, vocab_size=100))
