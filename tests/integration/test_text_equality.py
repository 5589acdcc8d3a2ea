"""The text layer against transformers on the same files."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rtp_serve.loader.gguf.convert import convert_gguf
from rtp_serve.loader.hub import resolve
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer
from tests.integration.text_samples import TEXTS
from tests.unit.loader.gguf_files import tiny_gguf
from tests.unit.text.vocabularies import byte_level_directory, prefix_space_directory

LLAMA3_STYLE = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message + "<|end|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- generation %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n\\n' }}{%- endif %}
"""
QWEN_STYLE = """{%- if tools %}
    {{- '<|start|>system\\n' }}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- '<|start|>user\\n<response>\\n' + message.content + '\\n</response><|end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|start|>' + message.role + ('*' if loop.index0 > ns.last else '') }}
    {{- '\\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' }}
        {{- call.function.name }}
        {{- '", "arguments": ' }}
        {{- call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Météo <b>now</b> & 'later'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Malmö"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi <there>\n"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "日本語 🙂"},
    ],
}
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "smollm2": resolve("smollm2-135m-instruct", files="tokenizer"),
        "llama3_style": byte_level_directory(
            root / "llama3", add_bos_token=True, chat_template=LLAMA3_STYLE
        ),
        "qwen_style": byte_level_directory(
            root / "qwen", add_bos_token=False, pad_token="<|end|>", chat_template=QWEN_STYLE
        ),
        "prefix_space": prefix_space_directory(root / "prefix"),
        "gguf_llama": converted(root / "gguf_llama", "llama-bpe"),
        "gguf_qwen2": converted(root / "gguf_qwen2", "qwen2"),
    }


def converted(directory: Path, pre: str) -> Path:
    directory.mkdir()
    convert_gguf(tiny_gguf(directory / "tiny.gguf", pre=pre), directory, with_weights=False)
    return directory


@pytest.fixture(
    params=["smollm2", "llama3_style", "qwen_style", "prefix_space", "gguf_llama", "gguf_qwen2"]
)
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    return directories[request.param]


def reference(directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory)


def test_ids_and_texts_are_equal(directory: Path):
    tokenizer, oracle = Tokenizer.from_directory(directory), reference(directory)
    for name, text in TEXTS.items():
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == oracle.encode(text, add_special_tokens=special), name
            decoded = oracle.decode(
                ids, skip_special_tokens=special, clean_up_tokenization_spaces=False
            )
            assert tokenizer.decode(ids, skip_special_tokens=special) == decoded, name


def test_special_tokens_are_equal(directory: Path):
    tokenizer, oracle = Tokenizer.from_directory(directory), reference(directory)
    assert tokenizer.bos_id == oracle.bos_token_id
    assert oracle.eos_token_id in tokenizer.eos_ids
    assert tokenizer.vocab_size == len(oracle)
    assert set(oracle.all_special_ids) <= tokenizer.special_ids


@pytest.mark.parametrize("name", ["smollm2", "llama3_style", "qwen_style"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_prompts_are_equal(
    directories: dict[str, Path], name: str, chat: str, add_generation_prompt: bool
):
    expected = reference(directories[name]).apply_chat_template(
        CHATS[chat], tokenize=False, add_generation_prompt=add_generation_prompt
    )
    mine = ChatTemplate.from_directory(directories[name])
    rendered = mine.render(CHATS[chat], add_generation_prompt=add_generation_prompt)
    assert rendered == expected


@pytest.mark.parametrize("name", ["llama3_style", "qwen_style"])
def test_prompts_with_tools_and_extra_values_are_equal(directories: dict[str, Path], name: str):
    extra = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    expected = reference(directories[name]).apply_chat_template(
        TOOL_CHAT, tools=TOOLS, tokenize=False, add_generation_prompt=True, **extra
    )
    mine = ChatTemplate.from_directory(directories[name])
    assert mine.render(TOOL_CHAT, tools=TOOLS, extra=extra) == expected
    assert "Malmö" in expected
