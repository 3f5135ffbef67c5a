"""Bench "attention": a block draft's attention over a packed context against a dense mask and repeated keys.

What is timed is one layer's share of it, forward and backward: the masks too, which a model makes once for all layers.

Shapes: T context tokens of all documents, N queries and own keys of all blocks, H heads, d head dim.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepspec.bench import measuring
from deepspec.bench.straightforward import DENSE
from deepspec.drafts.attention.choose import choose_backend
from deepspec.drafts.attention.contracts import AttentionBackend, AttentionGroups, Projected
from deepspec.errors import RecipeError


@dataclass(frozen=True)
class Sizes:
    """What is measured; see `add_arguments`."""

    context: int
    documents: int
    anchors: int
    positions: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    device: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    for names, default, text in (
        (["--context"], 2048, "tokens of each document"),
        (["--documents"], 1, "documents of the pack"),
        (["--anchors"], 64, "blocks of each document"),
        (["--positions", "--slots"], 7, "positions of a block"),
        (["--heads"], 32, "query heads"),
        (["--kv-heads"], 8, "key/value heads"),
        (["--head-dim"], 128, "numbers per head"),
    ):
        parser.add_argument(*names, type=measuring.positive, default=default, help=f"{text} (%(default)s)")
    parser.add_argument("--dtype", choices=tuple(measuring.DTYPES), help="float32; bfloat16 on a GPU")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    device = options.device
    if options.heads % options.kv_heads:
        raise RecipeError(
            f"{options.heads} heads cannot share {options.kv_heads}.",
            where="--kv-heads",
            remedy="Choose --heads as a multiple of --kv-heads.",
        )
    sizes = Sizes(
        context=options.context,
        documents=options.documents,
        anchors=options.anchors,
        positions=options.positions,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        dtype=options.dtype or measuring.usual_dtype(device),
        device=device,
    )
    warm_up = replace(sizes, context=16, documents=1, anchors=1)
    peaks = measuring.median_peaks(prepare, sizes, warm_up, ("ours", "reference"), repeat=options.repeat, device=device)
    problem = _Problem(sizes)
    error = problem.error()
    runs = {side: problem.run(backend) for side, backend in problem.backends.items()}
    seconds = measuring.alternate(runs, repeat=options.repeat, device=device)
    kept = {name: value for name, value in asdict(sizes).items() if name != "device"}
    return {
        "bench": "attention",
        "device": measuring.device_name(device),
        "sizes": {**kept, "threads": torch.get_num_threads(), "repeat": options.repeat},
        **measuring.compared(seconds, peaks),
        "max_rel_grad_error": error,
    }


def prepare(sizes: Sizes, side: str) -> measuring.Run:
    """One side's run, with inputs of its own."""
    problem = _Problem(sizes)
    return problem.run(problem.backends[side])


class _Problem:
    """Random inputs, drawn with one seed; anchors lie anywhere in a document."""

    def __init__(self, sizes: Sizes) -> None:
        generator = torch.Generator().manual_seed(0)
        device, self._dtype = torch.device(sizes.device), measuring.DTYPES[sizes.dtype]
        drawn = torch.randint(0, sizes.context, (sizes.documents, sizes.anchors), generator=generator)
        seen_A = drawn.sort(dim=1).values.flatten()
        self._groups = AttentionGroups(
            seen_A.to(device),
            seen_A.numpy(),
            (sizes.anchors,) * sizes.documents,
            (sizes.context,) * sizes.documents,
            queries_per_group=sizes.positions,
            own_per_group=sizes.positions,
        )
        self.backends: Mapping[str, AttentionBackend] = {"ours": choose_backend("auto", device), "reference": DENSE}

        def trained(rows: int, heads: int) -> Tensor:
            drawn = torch.randn(rows, heads, sizes.head_dim, generator=generator)
            tensor = drawn.to(device, self._dtype).requires_grad_()
            tensor.grad = torch.zeros_like(tensor)
            return tensor

        queries = sizes.documents * sizes.anchors * sizes.positions
        tokens = sizes.documents * sizes.context
        self._inputs = [trained(queries, sizes.heads)]
        self._inputs += [trained(rows, sizes.kv_heads) for rows in (queries, queries, tokens, tokens)]
        self._upstream = torch.randn(queries, sizes.heads, sizes.head_dim, generator=generator).to(device, self._dtype)
        self._scale = sizes.head_dim**-0.5

    def run(self, backend: AttentionBackend) -> measuring.Run:
        def run() -> None:
            attend = backend.groups(self._groups, self._dtype)
            attend(Projected(*self._inputs), scale=self._scale).backward(self._upstream)  # type: ignore[no-untyped-call]

        return run

    def error(self) -> float:
        """Relative Frobenius distance between both sides' gradients, of the worst tensor."""
        found = []
        for backend in self.backends.values():
            self.run(backend)()
            gradients = {}
            for number, tensor in enumerate(self._inputs):
                if tensor.grad is not None:
                    gradients[str(number)] = tensor.grad.clone()
                    tensor.grad.zero_()
            found.append(gradients)
        return measuring.worst_distance(*found)


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The document as a table for people."""
    return measuring.table(document)
