"""Chat templates: rendered as transformers renders them, in a sandbox, the same on every day."""

from __future__ import annotations

import pytest

from strop.data.records import Message
from strop.data.segments import find_stop_token
from strop.data.template import ChatTemplate
from strop.errors import TemplateError
from tiny_tokenizers import CHATML, KINDS, LLAMA2

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    Message("system", "Be <b>brief</b>."),
    Message("user", "Is \"x\" & 'y' → 日本?\n"),
    Message("assistant", "Yes."),
    Message("user", "Sure?"),
]

TRICKS = {
    "tojson": "{{ messages | tojson }}"
    "{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': '</é>'} | tojson(sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}{% break %}{% endfor %}",
    "trimmed blocks": "{% for m in messages %}\n    {% if true %}\n  {{ m.role }}\n    {% endif %}\n{% endfor %}\n",
    "generation": "{% set a = 1 %}{% generation %}{% set a = 2 %}\n{{ a }}{% endgeneration %}"
    "\n{{ a }}{{ bos_token }}{{ pad_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ tools is none }}",
    "list methods": "{{ messages[1:][0].content.split('?')[0].strip() }}"
    "{{ messages | map(attribute='role') | join(',') }}",
}


@pytest.mark.parametrize(
    "source", [*[kind["template"] for kind in KINDS.values()], *TRICKS.values()], ids=[*KINDS, *TRICKS]
)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_equal_to_transformers(source: str, add_generation_prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": message.role, "content": message.content} for message in MESSAGES]
    (expected,), _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=add_generation_prompt, **TOKENS
    )
    assert ChatTemplate(source, TOKENS).render(MESSAGES, add_generation_prompt=add_generation_prompt) == expected


def test_the_day_is_not_in_the_prompt() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
    assert ChatTemplate(source, {}).render(MESSAGES, add_generation_prompt=False) == "26 Jul 2024"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ strftime_now('%d %B %Y') }}", "26 July 2024"),
        ("{{ strftime_now('%-d.%m.%y, 100%% %999999999d %n') }}", "26.07.24, 100% %999999999d \n"),
        ("{% if not strftime_now is defined %}x{% endif %}", "x"),
        ("{% if strftime_now is not defined %}x{% else %}{{ strftime_now('%Y') }}{% endif %}", "x"),
    ],
)
def test_a_template_that_must_have_a_day_always_has_the_same(source: str, text: str) -> None:
    assert ChatTemplate(source, {}).render(MESSAGES, add_generation_prompt=False) == text


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(TemplateError, match=r"folder/chat_template.jinja, line 2: not a Jinja template"):
        ChatTemplate("{% for m in messages %}\n{% endif %}", {}, "folder/chat_template.jinja")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('No system turn, please') }}", "refuses the conversation: No system turn, please"),
        ("{{ messages.missing.content }}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ messages[0].content + 1 }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "fails"),
        ("{% include 'other' %}", "fails"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match="the chat template " + words):
        ChatTemplate(source, {}).render(MESSAGES, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [(CHATML, "<|im_end|>"), (LLAMA2, "</s>"), (CHATML.replace("<|im_end|>", ""), None)],
)
def test_the_stop_token_is_what_stands_behind_an_answer(source: str, expected: str | None) -> None:
    control = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    assert find_stop_token(ChatTemplate(source, TOKENS), control) == expected
