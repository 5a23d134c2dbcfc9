"""Chat templates in the manner of several families, and what transformers renders from them."""

import datetime
import json
from pathlib import Path

import jinja2

from transformers.utils import chat_template_utils

# Own wordings; each leans on features that published templates lean on.
TEMPLATES = {
    # Block whitespace: trim_blocks and lstrip_blocks must both be on.
    "blocks": """\
{% for message in messages %}
    {% if message.role == 'system' %}
[{{ message.content | trim }}]
    {% else %}
        {% for part in message.content %}
            {% if part.type == 'text' %}
{{ message.role | capitalize }}> {{ part.text }}
            {% else %}
{{ message.role.capitalize() }}> <image>
            {% endif %}
        {% endfor %}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
Assistant>
{% endif %}
""",
    # A default system turn, images counted in a namespace, strings or lists of parts.
    "default_system": (
        "{% set seen = namespace(images=0) %}{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
        "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' or 'image' in part %}"
        "{% set seen.images = seen.images + 1 %}{% if number_images %}Picture {{ seen.images }}: {% endif %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Images before the text of their turn, generation markers, selectattr.
    "images_first": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
        "{% if message['role'] != 'assistant' %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}"
        "{% endfor %}{% else %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Python methods, slices, reversed lists, loop controls, tojson, missing keys.
    "python": """\
{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{{- bos_token if bos_token is defined }}{{ messages[0].get('name', 'nobody').upper() }}
{%- for message in turns[::-1] %}
    {%- if loop.index0 >= 3 %}{% break %}{% endif %}
    {%- for part in message.content if part.type == 'text' %}
|{{ part.text.strip().split(' ')[0] | tojson }}{{ part.text.rstrip('?').lstrip() }}
    {%- endfor %}
    {%- for key, value in message.items() %} {{ key }}{% if value is not string %}({{ value | length }}){% endif %}
    {%- endfor %}
{%- endfor %}
{{- messages | tojson }}
{%- if missing %}never{% endif %}{{ '' if missing is none else '-' }}
{%- if add_generation_prompt %} go{% endif %}
""",
    # Reasoning that is shown only after the last question: a namespace filled by a walk backwards, splits at both ends,
    # neighbours by index, tool calls as JSON or as they are.
    "thinking": """\
{%- if tools %}
    {{- '[tools]' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '[system]' + messages[0].content + '[/]\\n' }}
{%- endif %}
{%- set seen = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if seen.searching and message.role == "user" and message.content is string and not(message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set seen.searching = false %}
        {%- set seen.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '[' + message.role + ']' + content + '[/]' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > seen.last and (loop.last or (not loop.last and thought)) %}
            {{- '[' + message.role + ']<think>' + thought.strip('\\n') + '</think>' + content.lstrip('\\n') }}
        {%- else %}
            {{- '[' + message.role + ']' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{% endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{% else %}{{- call.arguments | tojson }}{% endif %}
                {{- '}' }}
            {%- endfor %}
        {%- endif %}
        {{- '[/]\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '[user]' }}{% endif %}
        {{- '\\n<result>' + content + '</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '[/]\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{% endif %}
{%- endif %}
""",
    # A date, names that may be given from outside, what is said in another order, keys and values, block sets, indents.
    "dated": """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "never" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<system>\\nToday: " + date_string + strftime_now(" (%-d %B, %A)") + "\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}{{- tool | tojson(indent=2) }}{{- "\\n" }}{% endfor %}
{%- endif %}
{{- system_message }}
{%- set rules -%}
Be {{ 'brief' if messages | length < 3 else "patient" }}
{%- endset %}
{{- " " ~ rules ~ "." }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>\\n\\n' + (message['content'] or '') | trim + '</>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<' + message['role'] + '>' + call.name + '(' }}
        {%- if call.arguments is mapping %}
            {%- for name, value in call.arguments.items() %}{{- name + '="' ~ value ~ '"' }}
                {%- if not loop.last %}{{- ", " }}{% endif %}
            {%- endfor %}
        {%- endif %}
        {{- ')</>' }}
    {%- else %}
        {{- '<tool>' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}
""",
    # Roles that must alternate, numbers, filters in a row, tests by name, a default.
    "strict": """\
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- for message in loop_messages | rejectattr('role', 'equalto', 'tool') | list %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate: ' + message.role) }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if loop.first and system is defined %}{{- bos_token + ' [INST] ' + system + '\\n\\n' + message.content + ' [/INST]' }}
        {%- else %}{{- bos_token + ' [INST] ' + message.content.replace('?', '!').title() + ' [/INST]' }}{%- endif %}
    {%- else %}{{- ' ' + message.get('content', '') | replace('  ', ' ') | upper + (eos_token | default('</s>')) }}
    {%- endif %}
{%- endfor %}
{{- loop_messages | map(attribute='role') | unique | sort | join('|') }}
{{- [messages | length, 7 // 2, 2 ** 3, -7 % 3, 1.5 + 1, 'a' * 3, [1, 2] + [3], (1, 2)[0], {'k': 'v'}.k] | join(' ') }}
{%- set last = loop_messages | last %}{{- ' ' + last.content[:5] + '..' + last.content[-3:] }}
{{- ' ' ~ (messages | selectattr('role', 'in', ['user', 'assistant']) | list | count) ~ none ~ true }}
""",
    # A macro that counts in a namespace, parts of several kinds.
    "macro": """\
{%- set count = namespace(images=0, videos=0) %}
{%- macro shown(content, counted) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {%- if counted %}{%- set count.images = count.images + 1 %}{%- endif %}
                {%- if add_vision_id %}{{- 'Picture ' ~ count.images ~ ': ' }}{% endif %}
                {{- '<image>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('a part of an unknown kind') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- set content = shown(message.content, true) | trim %}
    {{- '<' ~ message.role ~ ' ' ~ loop.index ~ '/' ~ loop.length ~ '>' ~ content }}
    {%- if loop.previtem is defined and loop.previtem.role == message.role %}{{- '(again)' }}{% endif %}
{%- endfor %}
{{- count.images }}
{%- if add_generation_prompt %}{{- '<assistant>' }}{% endif %}
""",
}
# Which conversations a template is for, if not for those with pictures.
PLAIN = ("thinking", "dated", "strict")


def text(value: str) -> dict:
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}
CONVERSATIONS = {
    "plain": [{"role": "user", "content": [IMAGE, text("What is <this> & 'that' \"é\"?")]}],
    "turns": [
        {"role": "user", "content": [text("  first "), IMAGE, text("then"), IMAGE]},
        {"role": "assistant", "content": [text("An answer\nwith two lines")]},
        {"role": "user", "content": [text("日本 why?")]},
    ],
}


def call(name: str, arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TEXTS = {
    "question": [{"role": "user", "content": " What's <this> & 'that' \"é\"? "}],
    "thought": [
        {"role": "system", "content": "\nBe kind.  "},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\ntwo  and two\n</think>\n\nIt is 4."},
        {"role": "user", "content": "sure? it's o'clock"},
        {"role": "assistant", "content": "<think>\nagain\n</think>\n\nYes."},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call("look", {"town": "Köln", "days": 2})]},
        {"role": "tool", "content": '{"sun": true}'},
        {"role": "assistant", "content": "Sun.", "reasoning_content": "the tool says so"},
    ],
    "two calls": [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call("a", "{}"), call("b", {"x": [1, None, 0.5]})]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "user", "content": "<result>3</result>"},
    ],
}


class Frozen:
    """The day that Foveate's templates live in."""

    @staticmethod
    def now() -> datetime.datetime:
        return datetime.datetime(2024, 7, 26)


def make_templates(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chat_template_utils.datetime = Frozen
    for name, template in TEMPLATES.items():
        cases = []
        for key, messages in (TEXTS if name in PLAIN else CONVERSATIONS).items():
            for prompt in (False, True):
                case = {"name": key, "messages": messages, "add_generation_prompt": prompt}
                try:
                    rendered, _ = chat_template_utils.render_jinja_template(
                        conversations=[messages],
                        chat_template=template,
                        add_generation_prompt=prompt,
                        bos_token="<s>",
                    )
                    case["text"] = rendered[0]
                except jinja2.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
        value = {"template": template, "bos_token": "<s>", "cases": cases}
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    make_templates(Path(__file__).parent.parent / "fixtures" / "templates")
