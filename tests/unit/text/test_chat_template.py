import json
from pathlib import Path

import pytest

from rtp_serve.clock import VirtualClock
from rtp_serve.errors import CheckpointError, InvalidRequest
from rtp_serve.text.chat_template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def template(source: str, **options: object) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}, **options)  # type: ignore[arg-type]


def test_messages_are_rendered_with_and_without_the_generation_prompt():
    assert template(PLAIN).render(USER) == "<user>Hi<assistant>"
    assert template(PLAIN).render(USER, add_generation_prompt=False) == "<user>Hi"


def test_blocks_leave_no_blank_lines():
    assert (
        template("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}").render(USER)
        == "x\n"
    )


def test_special_tokens_and_extra_values_are_visible():
    source = "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}"
    assert template(source).render(USER, extra={"enable_thinking": False}) == "<s>False"


def test_json_is_not_escaped_for_html_and_keeps_its_order():
    rendered = template("{{ tools | tojson }}").render(USER, tools=[{"b": "<é>", "a": 1}])
    assert rendered == '[{"b": "<é>", "a": 1}]'


def test_json_takes_the_settings_templates_use():
    rendered = template("{{ tools[0] | tojson(indent=1, sort_keys=true) }}").render(
        USER, tools=[{"b": 1, "a": 2}]
    )
    assert rendered == '{\n "a": 2,\n "b": 1\n}'


def test_the_date_comes_from_the_clock():
    chat = template("{{ strftime_now('%Y') }}", clock=VirtualClock(365.25 * 86400 * 10.5))
    assert chat.render(USER) == "1980"


def test_the_generation_tag_has_no_effect():
    source = "a{% generation %}{{ messages[0].content }}{% endgeneration %}b"
    assert template(source).render(USER) == "aHib"


def test_loop_controls_work():
    assert template("{% for i in range(9) %}{{ i }}{% break %}{% endfor %}").render(USER) == "0"


def test_a_tool_template_is_chosen_when_there_are_tools():
    chat = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert (chat.render(USER), chat.render(USER, tools=[])) == ("plain", "tools")


def test_a_refusal_of_the_template_is_the_callers_mistake():
    with pytest.raises(InvalidRequest, match="messages: roles must alternate") as caught:
        template("{{ raise_exception('roles must alternate') }}").render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ 'a' + messages[0].missing }}", "{{ 'a' + none }}", "{{ messages[0]['x']['y'] }}"]
)
def test_a_message_of_another_shape_is_the_callers_mistake(source: str):
    with pytest.raises(InvalidRequest, match="messages"):
        template(source).render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_a_template_sees_no_internals(source: str):
    try:
        rendered = template(source).render(USER)
    except InvalidRequest:
        rendered = ""
    assert rendered == ""


@pytest.mark.parametrize("source", ["{{ messages.append(1) }}", "{{ messages[0].update({}) }}"])
def test_a_template_cannot_change_the_messages(source: str):
    with pytest.raises(InvalidRequest, match="unsafe"):
        template(source).render(USER)


def test_the_output_is_capped():
    source = "{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}"
    assert len(template(source, max_chars=2000).render(USER)) == 2000
    with pytest.raises(InvalidRequest, match="longer than 1999 characters"):
        template(source, max_chars=1999).render(USER)


def test_extra_values_cannot_replace_the_request():
    with pytest.raises(InvalidRequest, match="'messages' is set by the request"):
        template(PLAIN).render(USER, extra={"messages": []})


def test_a_model_without_a_template_says_so(tmp_path: Path):
    chat = ChatTemplate.from_directory(tmp_path)
    assert not chat.is_defined
    with pytest.raises(InvalidRequest, match="has no chat template"):
        chat.render(USER)


def test_a_template_file_goes_before_the_config(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.from_directory(tmp_path).render(USER) == "file"


def test_named_templates_are_read_from_the_list_form(tmp_path: Path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.from_directory(tmp_path).render(USER, tools=[{}]) == "t"


@pytest.mark.parametrize("value", [3, [1], [{"name": "default"}]])
def test_a_template_of_another_form_is_refused(tmp_path: Path, value: object):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(CheckpointError, match="chat_template must be a string or a list"):
        ChatTemplate.from_directory(tmp_path)


def test_a_syntax_error_is_found_when_the_checkpoint_is_loaded():
    with pytest.raises(CheckpointError, match="chat template"):
        template("{% if %}")
