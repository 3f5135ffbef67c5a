"""What starts an engine on a bundle: words, run in the bundle's folder, and the same as scripts.

Source: vLLM 0.32.0's and SGLang 0.5.23's arguments; spec page "Engines". None of SGLang's was run.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.export.engine_files import ACCEPTANCE, DRAFT_LENGTHS, SCHEDULE_FIELD, STEP_RATES, TEMPERATURES

TARGET = "$TARGET"
"""Stands for the target where a bundle knows no name of it that others could use."""
FOLDER = "serving"
_VLLM = ("python", "-m", "vllm.entrypoints.openai.api_server", "--model")
_SGLANG = ("python", "-m", "sglang.launch_server", "--model-path")
_STEP_RATES_MODE = ("env", "SGLANG_RAGGED_VERIFY_MODE=compact")
"""Without it SGLang reads the table of costs, and verifies every drafted token all the same."""


def engine_commands(
    weights_format: str, method: str, target: str, num_draft_tokens: int, contents: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The words that start engines: `vllm` or `sglang`, and `vllm-capacity DOMAIN` for each domain.

    A capacity command decodes with the draft, and accepts by the table of that domain whatever is proposed: its answers
    are of no use, its speed is that of a server with such acceptance.

    Args:
        weights_format: of the bundle.
        method: what the engine calls the algorithm.
        target: its name or folder, or `TARGET`.
        num_draft_tokens: proposed in a round.
        contents: the files for engines that are there, by name.
    """
    if weights_format in ("vllm", "speculators"):
        speculative = {"method": method, "model": ".", "num_speculative_tokens": num_draft_tokens}
        lengths = {SCHEDULE_FIELD: contents[DRAFT_LENGTHS]} if DRAFT_LENGTHS in contents else {}
        commands = {"vllm": _vllm(target, speculative | lengths)}
        for domain, rates in contents.get(ACCEPTANCE, {}).items():
            synthetic = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
            commands[f"vllm-capacity {domain}"] = _vllm(target, speculative | synthetic)
        return commands
    if weights_format == "sglang":
        return {"sglang": _sglang(target, method, contents)}
    return {}


def _vllm(target: str, speculative: Mapping[str, Any]) -> tuple[str, ...]:
    return (*_VLLM, target, "--speculative-config", json.dumps(speculative))


def _sglang(target: str, method: str, contents: Mapping[str, Any]) -> tuple[str, ...]:
    words = [*_SGLANG, target, "--speculative-algorithm", method, "--speculative-draft-model-path", "."]
    if method != "DSPARK":
        return tuple(words)
    if TEMPERATURES in contents:
        words += ["--speculative-dspark-confidence-sts-path", f"{FOLDER}/{TEMPERATURES}"]
    if STEP_RATES in contents:
        words += ["--speculative-dspark-sps-table-path", f"{FOLDER}/{STEP_RATES}"]
        return (*_STEP_RATES_MODE, *words)
    return tuple(words)


def scripts(commands: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The commands as shell scripts, by file name; further arguments are the engine's."""
    found = {f"{name}.sh": _script(_line(words)) for name, words in commands.items() if " " not in name}
    capacity = {name.split(" ", 1)[1]: words for name, words in commands.items() if " " in name}
    if capacity:
        cases = [f"{shlex.quote(domain)}) shift; {_line(words)} ;;" for domain, words in capacity.items()]
        known = shlex.quote(f"usage: vllm-capacity.sh DOMAIN, one of: {', '.join(capacity)}")
        lines = ['case "${1-}" in', *cases, f"*) echo {known} >&2; exit 2 ;;", "esac"]
        found["vllm-capacity.sh"] = _script("\n".join(lines))
    return found


def _line(words: Sequence[str]) -> str:
    quoted = ('"${TARGET:?name the target}"' if word == TARGET else shlex.quote(word) for word in words)
    return f'exec {" ".join(quoted)} "$@"'


def _script(line: str) -> str:
    return f'#!/bin/sh\nset -eu\ncd -- "$(dirname -- "$0")/.."\n{line}\n'
