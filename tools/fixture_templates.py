"""Chat templates in the manner of several families, and what transformers renders from them."""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

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
}


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


def make_templates(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, template in TEMPLATES.items():
        cases = []
        for key, messages in CONVERSATIONS.items():
            for prompt in (False, True):
                rendered, _ = render_jinja_template(
                    conversations=[messages], chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
                )
                cases.append({"name": key, "messages": messages, "add_generation_prompt": prompt, "text": rendered[0]})
        value = {"template": template, "bos_token": "<s>", "cases": cases}
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
