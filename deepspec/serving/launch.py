"""How an engine's own server is started with a draft: the command line, and the variables that it needs.

Nothing is left to an engine's guess: vLLM decides by the folder's name where the method is not named, and SGLang by the
draft's config where the block's size is not. Source: vLLM 0.32.0 (engine/arg_utils), SGLang 0.5.23 (arg_groups); spec
pages "Engines" and "Serving", section 3.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepspec.errors import BadArgument
from deepspec.export.vllm_format import speculative_config
from deepspec.serving import vllm_side
from deepspec.serving.prepare import Prepared

PORTS: Mapping[str, int] = {"vllm": 8000, "sglang": 30000}
"""Each engine's own default."""

DRAIN_SECONDS = 60
"""How long vLLM goes on with running requests after SIGTERM."""

_DSPARK = "dspark"


@dataclass(frozen=True)
class Server:
    """The server that is wanted.

    Attributes:
        python: a Python whose environment has the engine.
        target: the target's directory.
        name: what the model is called by its clients.
        host, port: where it listens.
        live: whether its draft shall be changed while it serves.
        further: arguments of the engine, as the user wrote them.
    """

    python: str
    target: Path
    name: str
    host: str
    port: int
    live: bool = False
    further: Sequence[str] = ()


@dataclass(frozen=True)
class Launch:
    """A server with its draft, ready to be started.

    Attributes:
        argv: the program and its arguments.
        environment: variables that it needs besides those that are there.
        draft: what it loads.
        url: where it answers.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    draft: Prepared
    url: str
    name: str = field(default="")

    def shell_line(self) -> str:
        """The same as one line for a shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.argv)])

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "engine": self.draft.engine,
            "argv": list(self.argv),
            "environment": dict(self.environment),
            "directory": str(self.draft.directory),
            "format": self.draft.engine,
            "method": self.draft.method,
            "num_draft_tokens": self.draft.num_draft_tokens,
            "url": self.url,
            "model": self.name,
        }


def launch(draft: Prepared, server: Server) -> Launch:
    """The engine's own command.

    Raises:
        BadArgument: the user's arguments set what is set here.
    """
    ours = _sglang(draft, server) if draft.engine == "sglang" else _vllm(draft, server)
    module = "sglang.launch_server" if draft.engine == "sglang" else "vllm.entrypoints.openai.api_server"
    _refuse_twice(ours, server.further)
    return Launch(
        argv=(server.python, "-m", module, *ours, *server.further),
        environment=_environment(draft, server),
        draft=draft,
        url=f"http://{_asked_at(server.host)}:{server.port}",
        name=server.name,
    )


def _vllm(draft: Prepared, server: Server) -> list[str]:
    speculative = speculative_config(draft.method, str(draft.directory), draft.num_draft_tokens)
    words = ["--model", str(server.target), "--served-model-name", server.name]
    words += ["--host", server.host, "--port", str(server.port)]
    words += ["--speculative-config", json.dumps(speculative)]
    words += ["--per-request-spec-decode-metrics", "detailed", "--shutdown-timeout", str(DRAIN_SECONDS)]
    if server.live:
        words += ["--weight-transfer-config", json.dumps({"backend": "deepspec"})]
        words += ["--worker-extension-cls", "deepspec_vllm.Worker"]
    return words


def _sglang(draft: Prepared, server: Server) -> list[str]:
    words = ["--model-path", str(server.target), "--served-model-name", server.name]
    words += ["--host", server.host, "--port", str(server.port), "--enable-metrics"]
    words += ["--speculative-algorithm", draft.method, "--speculative-draft-model-path", str(draft.directory)]
    if draft.method == "DSPARK":
        words += ["--speculative-dspark-block-size", str(draft.num_draft_tokens)]
        if draft.temperatures is not None:
            words += ["--speculative-dspark-confidence-sts-path", str(draft.temperatures)]
    elif draft.block_size is not None:
        words += ["--speculative-dflash-block-size", str(draft.block_size)]
    return words


def _environment(draft: Prepared, server: Server) -> dict[str, str]:
    found: dict[str, str] = {}
    if draft.engine == "vllm" and draft.method == _DSPARK:
        found["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    if draft.engine == "vllm" and server.live:
        found["VLLM_SERVER_DEV_MODE"] = "1"
        paths = [str(Path(vllm_side.__file__).parent), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


def _refuse_twice(ours: Sequence[str], further: Sequence[str]) -> None:
    """Refuse what the engine would take from the user's words instead of from ours."""
    flags = {word for word in ours if word.startswith("--")}
    for word in further:
        flag = word.partition("=")[0]
        if flag in flags:
            raise BadArgument(
                f"{flag} is set by deepspec serve itself.",
                where="after --",
                remedy="Leave it out there; `deepspec serve --help` shows the options for it.",
            )


def _asked_at(host: str) -> str:
    """Where a server is asked that listens at `host`."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104  # this is compared, not listened at
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
