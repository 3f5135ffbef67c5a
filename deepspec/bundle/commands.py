"""What starts an engine on a bundle: words, run in the bundle's folder, and the same as scripts.

Source: vLLM 0.32.0's and SGLang 0.5.23's arguments; spec page "Engines". vLLM's were run; none of SGLang's was.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.export.engine_files import ACCEPTANCE, DRAFT_LENGTHS, SCHEDULE_FIELD, STEP_RATES, TEMPERATURES
from deepspec.export.vllm_format import speculative_config

TARGET = "$TARGET"
"""Stands for the target where a bundle knows no name of it that others could use."""
FOLDER = "serving"
_PYTHON = "python"
_VLLM = (_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model")
_SGLANG = (_PYTHON, "-m", "sglang.launch_server", "--model-path")
_OF_SECOND_RUNNER = frozenset({"dspark"})
_SECOND_RUNNER = ("env", "VLLM_USE_V2_MODEL_RUNNER=1")
"""The only one that has these methods."""
_STEP_RATES_MODE = ("env", "SGLANG_RAGGED_VERIFY_MODE=compact")
"""Without it SGLang reads the table of costs, and verifies every drafted token all the same."""
_NO_WEIGHTS = {"draft_load_config": {"load_format": "dummy"}}
"""The draft's network with weights that mean nothing: drafting costs the same, and no file of them is read."""


def engine_commands(
    weights_format: str,
    method: str,
    target: str,
    num_draft_tokens: int,
    contents: Mapping[str, Any],
    revision: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """The words that start engines: `vllm` or `sglang`, and `vllm-capacity DOMAIN` for each domain.

    A capacity command runs the draft's network without its weights, of which config.json says enough, and accepts by
    the table of that domain whatever is proposed: its answers are of no use, its speed is that of a server with such
    acceptance.

    Args:
        weights_format: of the bundle.
        method: what the engine calls the algorithm.
        target: its name or folder, or `TARGET`.
        num_draft_tokens: proposed in a round.
        contents: the files for engines that are there, by name.
        revision: the target's commit at a hub; None: not known.
    """
    pinned = ("--revision", revision) if revision is not None else ()
    if weights_format in ("vllm", "speculators"):
        speculative = speculative_config(method, ".", num_draft_tokens)
        speculative |= {SCHEDULE_FIELD: contents[DRAFT_LENGTHS]} if DRAFT_LENGTHS in contents else {}
        words = (
            *(_SECOND_RUNNER if method in _OF_SECOND_RUNNER else ()),
            *_VLLM,
            target,
            *pinned,
            "--speculative-config",
        )
        commands = {"vllm": (*words, json.dumps(speculative))}
        for domain, rates in contents.get(ACCEPTANCE, {}).items():
            synthetic = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
            commands[f"vllm-capacity {domain}"] = (*words, json.dumps(speculative | _NO_WEIGHTS | synthetic))
        return commands
    if weights_format == "sglang":
        return {"sglang": _sglang((*_SGLANG, target, *pinned), method, contents)}
    return {}


def _sglang(started: tuple[str, ...], method: str, contents: Mapping[str, Any]) -> tuple[str, ...]:
    words = [*started, "--speculative-algorithm", method, "--speculative-draft-model-path", "."]
    if method != "DSPARK":
        return tuple(words)
    if TEMPERATURES in contents:
        words += ["--speculative-dspark-confidence-sts-path", f"{FOLDER}/{TEMPERATURES}"]
    if STEP_RATES in contents:
        words += ["--speculative-dspark-sps-table-path", f"{FOLDER}/{STEP_RATES}"]
        return (*_STEP_RATES_MODE, *words)
    return tuple(words)


def scripts(commands: Mapping[str, Sequence[str]], target: str) -> dict[str, str]:
    """The commands as shell scripts, by file name.

    Further arguments are the engine's. The variables PYTHON and TARGET take the place of Python and of the target.

    Args:
        commands: of `engine_commands`.
        target: as it stands in them.
    """
    line = {name: _line(words, target) for name, words in commands.items()}
    found = {f"{name}.sh": _script(text, target) for name, text in line.items() if " " not in name}
    capacity = {name.split(" ", 1)[1]: text for name, text in line.items() if " " in name}
    if capacity:
        cases = [f"{shlex.quote(domain)}) shift; {text} ;;" for domain, text in capacity.items()]
        known = shlex.quote(f"usage: vllm-capacity.sh DOMAIN, one of: {', '.join(capacity)}")
        lines = ['case "${1-}" in', *cases, f"*) echo {known} >&2; exit 2 ;;", "esac"]
        found["vllm-capacity.sh"] = _script("\n".join(lines), target)
    return found


def _line(words: Sequence[str], target: str) -> str:
    named = {target: '"$TARGET"', _PYTHON: '"$PYTHON"'}
    return f'exec {" ".join(named.get(word) or shlex.quote(word) for word in words)} "$@"'


def _script(line: str, target: str) -> str:
    asked = ': "${TARGET:?name the target}"' if target == TARGET else f"TARGET=${{TARGET:-{shlex.quote(target)}}}"
    lines = ["#!/bin/sh", "set -eu", f"PYTHON=${{PYTHON:-{_PYTHON}}}", asked, 'cd -- "$(dirname -- "$0")/.."', line]
    return "\n".join([*lines, ""])
