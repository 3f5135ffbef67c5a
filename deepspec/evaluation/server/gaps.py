"""How far apart a server's logits of two tokens are: whether rounding may decide between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepspec.foreign_json import parse
from deepspec.network import PLAIN, UnusableReply, heeds_proxies, received

if TYPE_CHECKING:
    import httpx

_LISTED = 5
_SECONDS = 60.0
_MAX_BYTES = 1 << 20

TIES = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.25}
"""By how much logits may differ that are a tie: in fp32 as `evaluation.lossless` has it, else two roundings at 16."""


def gap(url: str, model: str, prompt_ids: Sequence[int], ours: int, theirs: int, api_key: str | None) -> float | None:
    """The server's logit of `theirs` less that of `ours` behind a prompt; None where it does not say them.

    Where ours is not among the likeliest, it is further away than this.
    """
    import httpx

    body = {"model": model, "prompt": list(prompt_ids), "max_tokens": 1, "temperature": 0, "logprobs": _LISTED}
    body |= {"return_tokens_as_token_ids": True}
    headers = {"User-Agent": "deepspec", **PLAIN, **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    trust = heeds_proxies(url, where=url)
    try:
        with (
            httpx.Client(trust_env=trust, headers=headers, timeout=_SECONDS) as client,
            client.stream("POST", f"{url}/v1/completions", json=body) as coming,
        ):
            reply = received(coming, _MAX_BYTES, _SECONDS)
    except (httpx.HTTPError, TimeoutError, UnusableReply):
        return None
    return _gap(reply, ours, theirs)


def _gap(reply: "httpx.Response", ours: int, theirs: int) -> float | None:
    try:
        (said,) = parse(reply.content, _MAX_BYTES)["choices"][0]["logprobs"]["top_logprobs"]
        listed = {str(name): float(value) for name, value in said.items()}
        found = listed[f"token_id:{theirs}"] - listed.get(f"token_id:{ours}", min(listed.values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return found if -1e6 < found < 1e6 else None
