"""`python -m deepspec.bench NAME …`: one JSON document on stdout with `--json`, else a short table."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from deepspec.errors import DeepspecError


class Bench(Protocol):
    """What the module of a bench offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the bench's own options."""

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Run it; returns the document of the command line's contract."""

    def lines(self, document: Mapping[str, Any]) -> list[list[str]]:
        """The document as rows of a table, the header first."""


def _loss() -> Bench:
    from deepspec.bench import loss

    return loss


def _attention() -> Bench:
    from deepspec.bench import attention

    return attention


def _decode() -> Bench:
    from deepspec.bench import decode

    return decode


def _sps() -> Bench:
    from deepspec.bench import sps

    return sps


def _states() -> Bench:
    from deepspec.bench import states

    return states


def _tokens() -> Bench:
    from deepspec.bench import tokens

    return tokens


def _train_step() -> Bench:
    from deepspec.bench import train_step

    return train_step


BENCHES: Mapping[str, tuple[str, Callable[[], Bench]]] = MappingProxyType(
    {
        "attention": ("a block draft's attention, against a dense mask and repeated keys", _attention),
        "decode": ("the batched engine, against single requests and plain decoding", _decode),
        "loss": ("the losses without logits, against plain autograd over full logits", _loss),
        "sps": ("what decoding steps cost by rows and verified tokens, for the scheduler", _sps),
        "states": ("target states: bytes, reading against cat, capture, what codecs cost", _states),
        "tokens": ("rendering, tokenising and masking, against `datasets.map` row by row", _tokens),
        "train-step": ("a training step of a recipe's draft, against the straightforward way", _train_step),
    }
)
"""Name -> (purpose, module); a module is imported when it is chosen."""


def main(arguments: Sequence[str], command: str = "python -m deepspec.bench") -> None:
    """Run one bench and print its document.

    Args:
        arguments: the bench's name and its options.
        command: how this was called, for help.

    Raises:
        DeepspecError: something cannot be measured here.
        SystemExit: the arguments are wrong (2), or help was asked for (0).
    """
    purposes = "\n".join(f"  {name:<12}{purpose}" for name, (purpose, _) in BENCHES.items())
    chooser = argparse.ArgumentParser(
        prog=command,
        description=f"What this machine can do, measured.\n\n{purposes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chooser.add_argument("name", choices=tuple(BENCHES), metavar="NAME", help="a bench; NAME --help tells its options")
    name = chooser.parse_args(arguments[:1]).name
    # Read by OpenMP when torch is imported; as in the `deepspec` command, so that both measure the same.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from deepspec.bench import measuring

    purpose, load = BENCHES[name]
    parser = argparse.ArgumentParser(prog=f"{command} {name}", description=f"Measure {purpose}.")
    bench = load()
    bench.add_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--threads", type=measuring.positive, help="threads on a CPU; default: torch's choice")
    parser.add_argument("--repeat", type=measuring.positive, default=5, help="timed runs of each side (%(default)s)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document to stdout")
    options = parser.parse_args(arguments[1:])

    measuring.prepare_device(options.device, options.threads)
    document = bench.measure(options)
    if options.as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        sys.stdout.write(_table(document, bench.lines(document)))


def _table(document: Mapping[str, Any], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sizes = " ".join(f"{name}={value}" for name, value in document["sizes"].items())
    text = f"{document['bench']} on {document['device']}: {sizes}\n"
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        text += "  ".join(cells).rstrip() + "\n"
    return text


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DeepspecError as error:
        sys.stderr.write(f"deepspec: {error}\n")
        sys.exit(error.exit_code)
