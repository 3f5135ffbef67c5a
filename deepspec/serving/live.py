"""Another draft for a server that runs, by the engine's own calls; requests go on meanwhile.

    vLLM     /start_draft_weight_update, /update_weights {directory}, /finish_weight_update {weight_version}
             started with `deepspec serve --live`: only then has it these calls, and a transfer that reads a directory
    SGLang   /update_weights_from_disk {selector: "draft", weight_version, model_path}, where it knows `selector`

SGLang 0.5.23 does not: it ignores the field, and loads the draft's tensors into the target, too. So its schema is read
before it is asked, and a server without the field needs a restart. Only weights change: a draft of another algorithm or
shape needs one, too. Source: vLLM 0.32.0 (entrypoints/rl), run; SGLang 0.5.23 (io_struct, weight_updater), read only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deepspec.data.sources.rows import excerpt_of
from deepspec.errors import TransientError
from deepspec.network import PLAIN, UnusableReply, heeds_proxies, received
from deepspec.serving.errors import NotUpdatable

if TYPE_CHECKING:
    import httpx

_SECONDS = 300.0
"""For one call: an engine may be in a long step, and the weights come from a disk."""
_MAX_BYTES = 32 << 20
_ACTIVE = "already active"
_RESTART = "Restart the server with the new draft (`deepspec serve --follow` does)."


class Engine(Protocol):
    """A server whose draft can be changed while it runs."""

    def version(self) -> str:
        """What the server says that it runs; what it says before any update is its own.

        Raises:
            NotUpdatable: it cannot say.
            TransientError: it does not answer.
        """

    def update(self, directory: Path, version: str) -> None:
        """Let it run the draft in a directory, and see that it says so.

        Raises:
            NotUpdatable: it refuses; the draft that it had runs on.
            TransientError: it does not answer.
        """


class Vllm:
    """A vLLM server that was started for it.

    Args:
        url: base URL.
        api_key: sent as bearer token.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._calls = _Calls("vLLM", url, api_key)

    def version(self) -> str:
        """What it says in /weight_info."""
        return self._calls.text("GET", "/weight_info", None, "weight_version")

    def update(self, directory: Path, version: str) -> None:
        """Give it the directory's weights; see `Engine.update`."""
        try:
            self._calls.json("POST", "/start_draft_weight_update", None)
        except NotUpdatable as error:
            if _ACTIVE not in error.what:
                raise
            # The client that began it is gone; with our transfer nothing is half done then.
            self._calls.json("POST", "/finish_weight_update", {})
            self._calls.json("POST", "/start_draft_weight_update", None)
        self._calls.json("POST", "/update_weights", {"update_info": {"directory": str(directory.absolute())}})
        self._calls.json("POST", "/finish_weight_update", {"weight_version": version})
        # What is cached of prompts has the old draft's keys; refused while answers are under way, and then it ages out.
        self._calls.json("POST", "/reset_prefix_cache", None)
        _see(self.version(), version, self._calls.url)

    def name(self, version: str) -> None:
        """Let it say that it runs this draft, with which it was started."""
        self._calls.json("POST", "/update_weight_version", {"new_version": version})


class Sglang:
    """An SGLang server.

    Args:
        url: base URL.
        api_key: sent as bearer token.
    """

    _ROUTE = "/update_weights_from_disk"

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._calls = _Calls("SGLang", url, api_key)

    def version(self) -> str:
        """What it says in /model_info."""
        return self._calls.text("GET", "/model_info", None, "weight_version")

    def update(self, directory: Path, version: str) -> None:
        """Give it the directory's weights; see `Engine.update`."""
        if not self._selects():
            raise NotUpdatable(
                "this SGLang cannot change its draft alone: what it loads goes into the target, too.",
                where=self._calls.url,
                remedy=_RESTART,
            )
        body = {"model_path": str(directory.absolute()), "selector": "draft", "weight_version": version}
        said = self._calls.json("POST", self._ROUTE, body)
        if said.get("success") is not True:
            raise NotUpdatable(
                f"SGLang refuses the new draft: {self._calls.safe(said.get('message'))}.",
                where=self._calls.url,
                remedy=_RESTART,
            )
        _see(self.version(), version, self._calls.url)

    def _selects(self) -> bool:
        """Whether the call knows which of the two models it is about."""
        schema = self._calls.json("GET", "/openapi.json", None)
        route = schema.get("paths", {}).get(self._ROUTE, {}).get("post", {})
        body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        name = str(body.get("$ref", "")).rpartition("/")[2]
        named = schema.get("components", {}).get("schemas", {}).get(name, body)
        return "selector" in named.get("properties", {})


CLIENTS: Mapping[str, type[Vllm] | type[Sglang]] = {"vllm": Vllm, "sglang": Sglang}


class _Calls:
    """Requests to one server, with what went wrong in words.

    Raises, in each method:
        NotUpdatable: it refuses, or has no such call.
        TransientError: it does not answer.
    """

    def __init__(self, name: str, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        self._name, self._api_key = name, api_key

    def text(self, method: str, path: str, body: Mapping[str, Any] | None, field: str) -> str:
        """A field of the reply that has to be a text."""
        found = self.json(method, path, body).get(field)
        if not isinstance(found, str):
            raise NotUpdatable(f"{self._name} names no {field} in {path}.", where=self.url, remedy=_RESTART)
        return found

    def json(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """The reply, a JSON object; empty where it is none."""
        reply = self._reply(method, path, body)
        if reply.status_code == 404:
            raise NotUpdatable(
                f"{method} {path} is unknown there: this {self._name} was not started for it.",
                where=self.url,
                remedy="Start it with `deepspec serve --live`, or with the flags that `--dry-run --live` shows.",
            )
        try:
            found = reply.json()
        except ValueError:
            found = None
        said = found if isinstance(found, dict) else {}
        if reply.status_code >= 400:
            raise NotUpdatable(
                f"{method} {path} failed ({reply.status_code}): {self.safe(_reason(said)) or 'no reason is given'}.",
                where=self.url,
                remedy=_RESTART,
            )
        return said

    def safe(self, words: object) -> str:
        """A server's own words, fit for messages: short, one line, without the key."""
        text = str(words)
        return excerpt_of(text.replace(self._api_key, "***") if self._api_key else text)

    def _reply(self, method: str, path: str, body: Mapping[str, Any] | None) -> "httpx.Response":
        import httpx

        headers = {"User-Agent": "deepspec", **PLAIN}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        trust = heeds_proxies(self.url, where=self.url)
        try:
            with (
                httpx.Client(trust_env=trust, headers=headers, timeout=_SECONDS) as client,
                client.stream(method, f"{self.url}{path}", json=body) as coming,
            ):
                return received(coming, _MAX_BYTES, _SECONDS)
        except (httpx.HTTPError, TimeoutError, UnusableReply) as error:
            raise TransientError(
                f"{self._name} does not answer {method} {path} ({type(error).__name__}).",
                where=self.url,
                remedy="Check that the server runs, and its address.",
            ) from error


def _reason(said: Mapping[str, Any]) -> str:
    """What an engine says of a failure, in its own words."""
    error = said.get("error", said.get("message", said.get("detail", "")))
    text = str(error.get("message", "") if isinstance(error, Mapping) else error)
    _, quoted, worker = text.partition("Worker failed with error '")
    return (worker.partition("', please check")[0] if quoted else text).rstrip(".")


def _see(says: str, version: str, url: str) -> None:
    if says != version:
        raise NotUpdatable(
            f"the server says that it runs {says!r}, not {version!r}.",
            where=url,
            remedy="Another follower may update the same server; let one do it.",
        )
