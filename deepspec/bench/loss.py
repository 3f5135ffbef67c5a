"""Bench "loss": the losses without logits against plain autograd over full logits.

What is timed is a training step's share of it: from hidden states to the gradients of hidden states, factors and the
factors' head, with preallocated gradients. The confidence head's loss is a sum over N numbers, and is left out.

Shapes: N = anchors x positions rows, D hidden, r rank, V vocabulary.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from deepspec.bench import measuring, straightforward
from deepspec.losses import chunk_sweep, chunked, terms


@dataclass(frozen=True)
class Sizes:
    """What is measured; see `add_arguments`."""

    vocab: int
    hidden: int
    anchors: int
    positions: int
    algorithm: str
    rank: int
    dtype: str
    device: str


@dataclass(frozen=True)
class Problem:
    """The inputs of one loss.

    Args:
        sources: of the logits; the trained ones have a gradient of zeros already.
        labels_N: int64.
        weights_N: position weights over their sum.
    """

    sources: chunk_sweep.LogitSources
    labels_N: Tensor
    weights_N: Tensor

    def trained(self) -> dict[str, Tensor]:
        """What gets a gradient, by name."""
        named = {
            "hidden": self.sources.hidden_ND,
            "factors": self.sources.factors_Nr,
            "factor_head": self.sources.factor_head_Vr,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class Loss:
    """An algorithm's loss over logits, twice.

    Args:
        has_factors: whether its draft has a sequential head.
        reference: (problem, draft logits, target logits) -> loss, plainly.
        ours: (problem) -> loss, without logits.
    """

    has_factors: bool
    reference: Callable[[Problem, Tensor, Tensor], Tensor]
    ours: Callable[[Problem], Tensor]


def _block(*, ce: float, tv: float, has_factors: bool) -> Loss:
    """Loss of a block draft whose terms have these weights; a term of weight 0 is only logged."""

    def reference(problem: Problem, draft_NV: Tensor, target_NV: Tensor) -> Tensor:
        loss = ce * (problem.weights_N * terms.cross_entropy(draft_NV, problem.labels_N)).sum()
        with torch.set_grad_enabled(bool(tv)):
            l1_N = terms.l1_distance(draft_NV, target_NV)
        return loss + tv * (problem.weights_N * l1_N).sum() if tv else loss

    def ours(problem: Problem) -> Tensor:
        return chunked.block_terms(
            problem.sources,
            problem.labels_N,
            ce_weights_N=ce * problem.weights_N,
            l1_weights_N=tv * problem.weights_N if tv else None,
            factor_head_gradient_Vr=chunk_sweep.preallocated_gradient(problem.sources.factor_head_Vr),
        ).loss

    return Loss(has_factors, reference, ours)


def _soft() -> Loss:
    def reference(problem: Problem, draft_NV: Tensor, target_NV: Tensor) -> Tensor:
        with torch.no_grad():
            terms.acceptance(terms.l1_distance(draft_NV, target_NV))
        return (problem.weights_N * terms.soft_cross_entropy(draft_NV, target_NV)).sum()

    def ours(problem: Problem) -> Tensor:
        return chunked.soft_cross_entropy(problem.sources, problem.weights_N).loss

    return Loss(has_factors=False, reference=reference, ours=ours)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "dspark": _block(ce=0.1, tv=0.9, has_factors=True),
        "dflash": _block(ce=1.0, tv=0.0, has_factors=False),
        "eagle3": _soft(),
    }
)
"""With the factors that are the algorithms' defaults; what the default algorithm also logs is computed, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    parser.add_argument(
        "--vocab", type=measuring.positive, default=151936, help="tokens of the vocabulary (%(default)s)"
    )
    parser.add_argument(
        "--hidden", type=measuring.positive, default=1024, help="the target's hidden size (%(default)s)"
    )
    parser.add_argument("--anchors", type=measuring.positive, default=64, help="blocks (%(default)s)")
    parser.add_argument(
        "--positions", "--slots", type=measuring.positive, default=7, help="positions per block (%(default)s)"
    )
    parser.add_argument("--algorithm", choices=tuple(LOSSES), default="dspark", help="whose loss (%(default)s)")
    parser.add_argument(
        "--rank", type=measuring.positive, default=256, help="of the sequential head, if there is one (%(default)s)"
    )
    parser.add_argument("--dtype", choices=tuple(measuring.DTYPES), help="of the inputs (float32; bfloat16 on a GPU)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    device = options.device
    sizes = Sizes(
        vocab=options.vocab,
        hidden=options.hidden,
        anchors=options.anchors,
        positions=options.positions,
        algorithm=options.algorithm,
        rank=options.rank if LOSSES[options.algorithm].has_factors else 0,
        dtype=options.dtype or measuring.usual_dtype(device),
        device=device,
    )
    warm_up = replace(sizes, vocab=min(sizes.vocab, 64), anchors=1)
    peaks = measuring.median_peaks(prepare, sizes, warm_up, ("ours", "reference"), repeat=options.repeat, device=device)
    problem = _problem(sizes)
    error = _gradient_error(problem, sizes.algorithm)
    sides = {"ours": _ours(problem, sizes), "reference": _reference(problem, sizes), "floor": _floor(problem)}
    seconds = measuring.alternate(sides, repeat=options.repeat, device=device)
    threads = torch.get_num_threads()
    kept = {name: value for name, value in asdict(sizes).items() if name != "device"}
    return {
        "bench": "loss",
        "device": measuring.device_name(device),
        "sizes": {**kept, "rows": sizes.anchors * sizes.positions, "threads": threads, "repeat": options.repeat},
        **measuring.compared(seconds, peaks),
        "floor_seconds": measuring.median(seconds["floor"]),
        "max_rel_grad_error": error,
    }


def prepare(sizes: Sizes, side: str) -> measuring.Run:
    """One side's run, with inputs of its own."""
    return {"ours": _ours, "reference": _reference}[side](_problem(sizes), sizes)


def _problem(sizes: Sizes) -> Problem:
    """Random inputs, drawn with one seed, whose logits spread as a trained head's do (a few units)."""
    generator = torch.Generator().manual_seed(0)
    device, dtype = torch.device(sizes.device), measuring.DTYPES[sizes.dtype]
    rows = sizes.anchors * sizes.positions

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(device, dtype)

    def trained(*shape: int, scale: float = 1.0) -> Tensor:
        tensor = normal(*shape, scale=scale).requires_grad_()
        tensor.grad = torch.zeros_like(tensor)
        return tensor

    has_factors = LOSSES[sizes.algorithm].has_factors
    sources = chunk_sweep.LogitSources(
        hidden_ND=trained(rows, sizes.hidden),
        final_ND=normal(rows, sizes.hidden),
        head_VD=normal(sizes.vocab, sizes.hidden, scale=2.0 * sizes.hidden**-0.5),
        factors_Nr=trained(rows, sizes.rank) if has_factors else None,
        factor_head_Vr=trained(sizes.vocab, sizes.rank, scale=sizes.rank**-0.5) if has_factors else None,
    )
    labels_N = torch.randint(0, sizes.vocab, (rows,), generator=generator).to(device)
    weights_N = torch.exp(-(torch.arange(rows, device=device) % sizes.positions) / 4.0)
    return Problem(sources, labels_N, weights_N / weights_N.sum())


def _reference_loss(problem: Problem, algorithm: str) -> Tensor:
    return LOSSES[algorithm].reference(problem, *straightforward.logits(problem.sources))


def _reference(problem: Problem, sizes: Sizes) -> measuring.Run:
    def run() -> None:
        _reference_loss(problem, sizes.algorithm).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return run


def _ours(problem: Problem, sizes: Sizes) -> measuring.Run:
    def run() -> None:
        LOSSES[sizes.algorithm].ours(problem).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return run


def _floor(problem: Problem) -> measuring.Run:
    """The matrix products of one loss and its gradients, each in one piece into memory that is there already."""
    sources = problem.sources
    logits_NV = sources.hidden_ND.new_empty(sources.hidden_ND.shape[0], sources.head_VD.shape[0])
    outputs = {name: torch.empty_like(tensor) for name, tensor in problem.trained().items()}

    @torch.no_grad()
    def run() -> None:
        torch.mm(sources.final_ND, sources.head_VD.T, out=logits_NV)
        torch.mm(sources.hidden_ND, sources.head_VD.T, out=logits_NV)
        torch.mm(logits_NV, sources.head_VD, out=outputs["hidden"])
        if sources.factors_Nr is not None and sources.factor_head_Vr is not None:
            logits_NV.addmm_(sources.factors_Nr, sources.factor_head_Vr.T)
            torch.mm(logits_NV, sources.factor_head_Vr, out=outputs["factors"])
            torch.mm(logits_NV.T, sources.factors_Nr, out=outputs["factor_head"])

    return run


def _gradient_error(problem: Problem, algorithm: str) -> float:
    """Relative Frobenius distance between both sides' gradients, of the worst tensor."""
    found = []
    for loss in (LOSSES[algorithm].ours(problem), _reference_loss(problem, algorithm)):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = {}
        for name, tensor in problem.trained().items():
            if tensor.grad is not None:
                gradients[name] = tensor.grad.clone()
                tensor.grad.zero_()
        found.append(gradients)
    return measuring.worst_distance(*found)


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The document as a table for people."""
    *rows, error = measuring.table(document)
    return [*rows, ["products alone", f"{document['floor_seconds']:.4f}", ""], error]
