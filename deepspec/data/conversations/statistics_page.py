"""One page about a set of conversations: sources, lengths, and a few of the conversations.

Self-contained: no script, nothing from the network (a policy in it forbids both); everything that came from outside is
escaped. Not here: counting and choosing (statistics.py).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

COUNTED = (
    "rows",
    "quarantined",
    "excluded",
    "decontaminated",
    "duplicates",
    "near_duplicates",
    "left_out",
    "conversations",
)
"""Of each source: rows read; where each of them went; and what stayed."""

_BAR_CHARACTERS = 40

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Conversations</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8884; text-align: left; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
article { border: 1px solid #8886; border-radius: .4rem; padding: .2rem 1rem; margin: 1rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; }
</style>
</head>
<body>
<h1>Conversations</h1>
<h2>Sources</h2>
<table>
<tr><th>source</th><th>domain</th><th>licence</th><th>retention</th>{% for name in counted %}<th>{{ name }}</th>\
{% endfor %}</tr>
{% for source in sources -%}
<tr><td>{{ source.name }}</td><td>{{ source.domain or "—" }}</td><td>{{ source.licence or "—" }}</td>\
<td>{{ source.retention or "—" }}</td>{% for name in counted %}<td class="n">{{ source[name] }}</td>{% endfor %}</tr>
{% endfor -%}
</table>
<ul>
{% for line in lines -%}
<li>{{ line }}</li>
{% endfor -%}
</ul>
<h2>Domains</h2>
<table>
<tr><th>domain</th>{% for name in counted %}<th>{{ name }}</th>{% endfor %}</tr>
{% for domain, counts in domains.items() -%}
<tr><td>{{ domain }}</td>{% for name in counted %}<td class="n">{{ counts[name] }}</td>{% endfor %}</tr>
{% endfor -%}
</table>
{% for unit, bars in histograms.items() -%}
<h2>Length in {{ unit }}</h2>
<p>{{ means[unit] }} on average.</p>
<table>
{% for bar in bars -%}
<tr><td>{{ bar.range }}</td><td class="n">{{ bar.count }}</td><td>{{ bar.bar }}</td></tr>
{% endfor -%}
</table>
{% endfor -%}
<h2>Some of them</h2>
<p>Chosen by content, as many of each source.</p>
{% for item in shown -%}
<article>
<p>{{ item.source }}, {{ item.domain }}, {{ item.split }}, <code>{{ item.id }}</code></p>
{% for message in item.messages -%}
<b>{{ message.role }}</b>
<pre>{{ message.content }}</pre>
{% endfor -%}
</article>
{% endfor -%}
</body>
</html>
"""


def conversations_page(statistics: Mapping[str, Any], lines: Sequence[str], shown: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML.

    Args:
        statistics: as in `about/statistics.json`.
        lines: what was read of the sources, and what was not.
        shown: conversations: `source, domain, split, id, messages`.
    """

    lengths = statistics["lengths"]
    return _template().render(
        counted=COUNTED,
        sources=statistics["sources"],
        lines=lines,
        domains=statistics["domains"],
        histograms={unit: _bars(lengths[unit]) for unit in ("characters", "messages")},
        means=lengths["mean"],
        shown=shown,
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True).from_string(_TEMPLATE)


def _bars(bins: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    largest = max((count for *_, count in bins), default=1)
    return [
        {
            "range": f"{first}" if first == last else f"{first} …" if last is None else f"{first} … {last}",
            "count": count,
            "bar": "█" * max(1, round(_BAR_CHARACTERS * count / largest)),
        }
        for first, last, count in bins
    ]
