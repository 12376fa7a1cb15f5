"""Chat templates of all kinds get each text of a conversation, whatever roles and contents they support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Program
from support.layouts import chat_model, without
from support.tiny_models import write_tokenizer

from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.prompter import Message, Prompter
from mlxk2.runner.prompt.tokenizer import load_tokenizer

# Written for these tests, in the style of templates of published models.
ONE_SYSTEM = (
    "{%- if messages[0].role == 'system' %}<s>{{ messages[0].content }}</s>{% endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}"
    "{%- elif m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
SHAPES = {
    "every role": "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% endfor %}",
    "as Qwen 3.5": ONE_SYSTEM,
    "as Qwen 3, drops later system messages": (
        "{%- if messages[0].role == 'system' %}<s>{{ messages[0].content }}{% endif %}"
        "{%- for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
        "<{{ m.role }}>{{ m.content }}"
        "{%- elif m.role == 'assistant' %}<a>{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
    ),
    "as Gemma, knows no system": (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
    ),
    "as Gemma 3": (
        "{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
        "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- else -%}"
        "{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}"
        "{%- set rest = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}{%- set rest = messages -%}{%- endif -%}"
        "{%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
        "<{{ m['role'] }}>{{ prefix if loop.first }}"
        "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}"
        "{%- for part in m['content'] -%}{{ part['text'] | trim }}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    ),
    "as Mistral, with the system in the last turn": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set rest = messages[1:] %}"
        "{%- else %}{%- set rest = messages %}{%- endif %}"
        "{%- for m in rest %}{%- if m['role'] == 'user' %}[INST]"
        "{% if loop.last and system is defined %}{{ system }}{% endif %}"
        "{{ m['content'] }}[/INST]{%- elif m['role'] == 'assistant' %}{{ m['content'] }}"
        "{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
    ),
    "as Llama 3": (
        "{% for m in messages %}{% set content = '<|h|>' + m['role'] + '\n\n' + m['content'] | trim + '<|e|>' %}"
        "{% if loop.index0 == 0 %}{% set content = 'B' + content %}{% endif %}{{ content }}{% endfor %}"
    ),
    "as Phi 3": (
        "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}{{ '<|system|>\n' + m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] }}{% endif %}{% endfor %}"
    ),
    "as DeepSeek, collects the system": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
        "{% for m in messages %}{% if m['role'] == 'user' %}<U>{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %}<A>{{ m['content'] }}{% endif %}{% endfor %}"
    ),
    "as an early DeepSeek, keeps the last system": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ ns.system }}"
        "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}"
        "{% endif %}{% endfor %}"
    ),
    "as GLM, by a macro": (
        "{%- macro visible(content) -%}{%- if content is string -%}{{ content }}"
        "{%- elif content is iterable and content is not mapping -%}{%- for item in content -%}"
        "{{ item.text if item.type == 'text' }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ visible(m.content) }}{% endfor %}"
    ),
    "as SmolVLM, knows parts alone": (
        "{% for m in messages %}{{ m['role'] | capitalize }}"
        "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        "{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% endif %}{% endfor %}<end>{% endfor %}"
    ),
    "the first part alone": "{% for m in messages %}<{{ m.role }}>{{ m.content[0]['text'] | trim }}{% endfor %}",
    "parts alone, and one system": (
        "{% for m in messages %}"
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('one system') }}{% endif %}"
        "<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    ),
    "harmony, with one message for developers": (
        "{%- if messages[0].role in ['developer', 'system'] %}"
        "{%- set first = messages[0].content %}{%- set rest = messages[1:] %}"
        "{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}"
        "<|start|>developer{{ first }}{%- for m in rest %}{%- if m.role in ['user', 'assistant'] %}"
        "<|start|>{{ m.role }}{{ m.content }}{%- endif %}{%- endfor %}"
    ),
    "drops the system": "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "writes JSON": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
}


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


SYSTEM, MORE, USER, ANSWER, LAST = "Be brief.", "Say no.", "a", "fine", "and you"
CONVERSATIONS = {
    "a user": [turn("user", USER)],
    "a system message": [turn("system", SYSTEM), turn("user", USER)],
    "two system messages": [turn("system", SYSTEM), turn("system", MORE), turn("user", USER)],
    "some turns": [turn("system", SYSTEM), turn("user", USER), turn("assistant", ANSWER), turn("user", LAST)],
    "a system message later": [
        turn("system", SYSTEM),
        turn("user", USER),
        turn("assistant", ANSWER),
        turn("system", MORE),
        turn("user", LAST),
    ],
}


# Renders prompts as text for a model in this folder with this template in its tokenizer's config.
Texts = Callable[..., str]
Open = Callable[[Path, str | None], Texts]


@pytest.fixture
def prompter() -> Iterator[Open]:
    """Yield a function that opens tokenizers; end their processes afterwards."""
    with ExitStack() as opened:

        def make(folder: Path, template: str | None) -> Texts:
            write_tokenizer(folder, template=template, config={"bos_token": "<|im_start|>"})
            tokenizer = load_tokenizer(folder, {}, Starter(), "model")
            opened.callback(tokenizer.close)
            made = Prompter(tokenizer, Vocabulary.of(tokenizer))
            return lambda messages, **variables: tokenizer.decode(made.chat(messages, variables).tokens)

        yield make


@pytest.mark.parametrize("template", SHAPES.values(), ids=SHAPES)
def test_every_text_of_a_conversation_is_in_the_prompt(prompter: Open, tmp_path: Path, template: str) -> None:
    texts = prompter(tmp_path, template)
    for messages in CONVERSATIONS.values():
        text = texts(messages)
        assert [message["content"] for message in messages if message["content"] not in text] == []
        assert "'type'" not in text and '"type"' not in text
        assert text.count(LAST) == sum(message["content"] == LAST for message in messages)


def test_a_later_system_message_joins_the_first_if_needed(prompter: Open, tmp_path: Path) -> None:
    texts = prompter(tmp_path, ONE_SYSTEM)
    expected = f"<s>{SYSTEM}\n\n{MORE}</s><user>{USER}<assistant>{ANSWER}<user>{LAST}"
    assert texts(CONVERSATIONS["a system message later"]) == expected


def test_messages_that_a_template_accepts_are_unchanged(prompter: Open, tmp_path: Path) -> None:
    texts = prompter(tmp_path, SHAPES["every role"])
    assert texts(CONVERSATIONS["two system messages"]) == f"<system>{SYSTEM}<system>{MORE}<user>{USER}"


def test_a_message_in_parts_can_be_continued(prompter: Open, tmp_path: Path) -> None:
    texts = prompter(tmp_path, SHAPES["the first part alone"])
    messages = [turn("user", USER), turn("assistant", ANSWER)]
    variables = {"continue_final_message": True, "add_generation_prompt": False}
    assert texts(messages, **variables) == f"<user>{USER}<assistant>{ANSWER}"


FILES: dict[str, tuple[str | None, dict[str, str], str | None]] = {
    "chat_template.json": (None, {"chat_template.json": '{"chat_template": "J{{ messages[0].content }}"}'}, "Ja"),
    "several in chat_template.json": (
        None,
        {
            "chat_template.json": '{"chat_template": [{"name": "tool_use", "template": "T"}, '
            '{"name": "default", "template": "D"}]}'
        },
        "D",
    ),
    "the file wins": ("C", {"chat_template.jinja": "J", "chat_template.json": '{"chat_template": "S"}'}, "J"),
    "the tokenizer's config before it": ("C", {"chat_template.json": '{"chat_template": "S"}'}, "C"),
    "an empty file": ("C", {"chat_template.jinja": "", "chat_template.json": '{"chat_template": "S"}'}, "C"),
    "white space in the config": (" \n", {"chat_template.json": '{"chat_template": "S"}'}, "S"),
    "more templates": ("C", {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"}, "J"),
    "more templates alone": (None, {"additional_chat_templates/rag.jinja": "R"}, "R"),
    "a byte order mark": (None, {"chat_template.jinja": "\ufeffJ"}, "J"),
    "none": (None, {}, None),
    "nothing but empty ones": ("", {"chat_template.jinja": " \n", "chat_template.json": '{"chat_template": ""}'}, None),
}


@pytest.mark.parametrize(("config", "files", "expected"), FILES.values(), ids=FILES)
def test_a_template_is_found_in_every_place_that_models_use(
    prompter: Open, tmp_path: Path, mlxk2: Program, config: str | None, files: dict[str, str], expected: str | None
) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    texts = prompter(tmp_path, config)
    # Without a template, the prompt is the text itself.
    assert texts([turn("user", USER)]) == (USER if expected is None else expected)
    for name, content in without(chat_model(), "tokenizer_config.json", "tokenizer.json").items():
        (tmp_path / name).write_bytes(bytes(content))
    model = mlxk2("show", str(tmp_path), "--json").json["data"]["model"]
    assert model["model_type"] == ("base" if expected is None else "chat")
