"""Chat templates as programs from outside: they write what transformers writes, and end within bounds."""

import time
from typing import Any

import pytest

from deepspec.data.chat import template as template_module
from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.template import ChatTemplate
from deepspec.data.sources.rows import RowRejected
from deepspec.errors import UnsupportedTarget
from tests.fixtures.chat_templates import GEMMA4, QWEN3
from tests.fixtures.refused import refused

CALL = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": {"a": [1, {"b": None}], "c": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": None}}}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": " a\n"}, {"role": "assistant", "content": "b"}],
    [
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "call_0", "name": "add"},
        {"role": "tool", "content": "5", "tool_call_id": "call_0", "name": "add"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nfour", "reasoning_content": "well"},
        {"role": "user", "content": "thanks"},
    ],
]
LANGUAGE = """
{%- macro twice(x) -%}{{ x }}{{ x ~ x }}{{ caller() if caller }}{%- endmacro -%}
{%- for m in messages recursive -%}{{ loop.length }}{{ loop.revindex }}{{ loop.last }}{{ m.role ~ '|' ~ loop.index }}
{%- if m.sub -%}{{ loop(m.sub) }}{%- endif -%}
{%- if loop.index > 2 -%}{%- break -%}{%- endif -%}{%- else -%}none{%- endfor -%}
{%- for m in messages[::-1] if m.role == 'user' -%}{{ m.content | upper | replace('I', 'y') }}{%- endfor -%}
{%- for k, v in (tools[0] if tools else {}).items() -%}{{ k }}{{ v | tojson(indent=2) }}{%- endfor -%}
{%- for x in missing -%}no{%- endfor -%}{%- set ns = namespace(n=0) -%}
{%- for i in range(3) -%}{%- set ns.n = ns.n + i * 2 -%}{%- endfor -%}{{ ns.n }}{{ '%s-%d' % ('a', 3) }}
{{ messages | map(attribute='role') | join(', ') }}{{ ['a', ['b']] }}{{ none }}{{ 7 // 2 }}{{ 'x' * 3 }}{{ 2 ** 8 }}
{%- call twice('z') -%}said{%- endcall -%}{% set block %}in {{ 1 + 1 }}{% endset %}{{ block | length }}
{{- '{}/{:>4}'.format('a', 'b') }}{{ ', '.join(['p', 'q']) }}{{ 'ab' | center(9) }}{{ bos_token is defined }}
"""


@pytest.mark.parametrize("template", [QWEN3, GEMMA4, LANGUAGE], ids=["qwen3", "gemma4", "language"])
@pytest.mark.parametrize("prompt", [False, True])
def test_it_writes_what_transformers_writes(tokenizer: Any, template: str, prompt: bool) -> None:
    ours = ChatTemplate(tokenizer, template, "x.jinja")
    switches = {"add_generation_prompt": prompt, "enable_thinking": prompt}
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):
            theirs = tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, **switches
            )
            assert ours.render(messages, tools, **switches) == theirs


FOR = "{% for i in range(99999) %}"
DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = VALUE %}{% endfor %}{{ n.x USE }}"
ENDLESS = {
    "loops": FOR * 4 + "x" + "{% endfor %}" * 4,
    "empty loops": FOR * 4 + "{% endfor %}" * 4,
    "recursive loops": "{% for i in range(60) recursive %}{% if i %}{{ loop(range(i)) }}{% endif %}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(90) }}",
    "a block that calls itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "written texts": FOR * 2 + "x" * 1000 + "{% endfor %}" * 2,
    "a macro of texts": "{% macro m() %}" + "x" * 9999 + "{% endmacro %}" + FOR + "{% set y = m() %}{% endfor %}",
    "products": "{{ 'a' * 10 ** 10 }}",
    "products of lists": "{{ [0] * 10 ** 10 }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "powers of names": "{% set n = 9 %}{{ n ** (n ** (n ** n)) }}",
    "doubled texts": DOUBLED.replace("VALUE", "n.x ~ n.x").replace("USE", "| length"),
    "added texts": DOUBLED.replace("VALUE", "n.x + n.x").replace("USE", "| length"),
    "joined texts": DOUBLED.replace("VALUE", "n.x.join([n.x, n.x, n.x])").replace("USE", "| length"),
    "replaced texts": DOUBLED.replace("VALUE", "n.x.replace('a', n.x)").replace("USE", "| length"),
    "replaced by a filter": DOUBLED.replace("VALUE", "n.x | replace('a', n.x)").replace("USE", "| length"),
    "lists in lists": DOUBLED.replace("VALUE", "[n.x, n.x]").replace("USE", ""),
    "lists in lists as JSON": DOUBLED.replace("VALUE", "[n.x, n.x]").replace("USE", "| tojson"),
    "lists in lists as text": DOUBLED.replace("VALUE", "[n.x, n.x]").replace("USE", "| string | length"),
    "padding": "{{ 'a' | center(10 ** 9) }}",
    "padding by a method": "{{ 'a'.ljust(1000000000) }}",
    "constant padding": "{{ 'a' | center(1000000000) }}",
    "formats": "{{ '%1000000000d' % 1 }}",
    "formats by a method": "{{ '{:>1000000000}'.format(1) }}",
    "widths": "{{ '%*d' % (1000000000, 1) }}",
    "indentation": "{{ ('\\n' * 60000) | indent(60000) }}",
    "indented JSON": "{{ [[[1]]] | tojson(indent=1000000) }}",
    "long joints": "{{ range(99999) | map('string') | join('x' * 90000) }}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_does_not_end_or_does_too_much_is_refused_with_its_place(
    tokenizer: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "_MOST_STEPS", 2_000_000)
    started = time.thread_time()
    template = ChatTemplate(tokenizer, "\n" + ENDLESS[kind], "/models/x/chat_template.jinja")
    with refused(UnsupportedTarget, "chat template", where="/models/x/chat_template.jinja:2"):
        template.render(CONVERSATIONS[0], None, add_generation_prompt=True)
    assert time.thread_time() - started < 60.0  # a bound that is not there takes hours, or all memory


def test_long_conversations_are_no_endless_ones(tokenizer: Any) -> None:
    messages = CONVERSATIONS[2][:5] * 300
    text = ChatTemplate(tokenizer, QWEN3, "x").render(messages, TOOLS, add_generation_prompt=True)
    assert text.count("<|im_end|>") > 900
    long = [{"role": "user", "content": "ab " * 3_000_000}]
    assert len(ChatTemplate(tokenizer, QWEN3, "x").render(long, None, add_generation_prompt=True)) > 9_000_000


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 1 // (messages | length - 1) }}", "ZeroDivisionError"),
        ("{{ range(10 ** 7) }}", "OverflowError"),
        ("{{ {}.pop('x') }}", "refuses"),
        ("{{ 'a'.index('b') }}", "ValueError"),
        ("{{ messages[0].content.nothing.more }}", "refuses"),
        ("{{ messages + 1 }}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
    ],
)
def test_every_failure_is_a_row_that_is_refused_with_its_line(tokenizer: Any, template: str, error: str) -> None:
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    other.chat_template = "{% if true %}\n\n" + template + "{% endif %}"
    with pytest.raises(RowRejected, match=error) as caught:
        Renderer(other, CHATML).prompt_text([{"role": "user", "content": "hi"}])
    assert "chat_template.jinja:3" in f"{caught.value.reason} {caught.value.detail}"


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "9" * 5000 + " }}",
     "{% for i in [1] %}" * 30 + "{% endfor %}" * 30],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused(tokenizer: Any, template: str) -> None:
    with refused(UnsupportedTarget, "jinja", where="x.jinja"):
        ChatTemplate(tokenizer, template, "x.jinja")
