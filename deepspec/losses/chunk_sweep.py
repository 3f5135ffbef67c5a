"""The sweep under the losses of `chunked.py`: cuts the rows into chunks, makes their logits, sums their gradients.

A chunk costs one product for the logits of draft and target together, one for the gradient of the hidden states, and
the factors' three. In between everything happens in place. Memory: a chunk's buffers, whatever N is, and the gradients
themselves. Products are in the inputs' dtype, everything else in fp32 (fp64 stays fp64).

Not here: the terms of a loss (chunked.py). Source: spec page "Algorithms", "The cost that matters".

Shapes: N supervised positions, n of them in a chunk, D hidden, r rank, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU each chunk streams the head from memory and packs it again, which costs as much as computing some 30 rows.
# At V = 151,936 these are 90 rows a chunk: 75 took a twentieth longer, 112 no less and a fifth more memory. A GPU needs
# many more to be busy (its sizes are guesses: not measured yet).
_MOST_BYTES = {"cpu": 110 << 20, "cuda": 1 << 30}
_MOST_ROWS = {"cpu": 128, "cuda": 4096}
# Columns of a product at a time: a piece of the head stays in the cache while it is packed (1.4x
# faster for 180 rows in fp32). A product that sums over the vocabulary takes larger pieces; in one it was a fifth
# slower on two threads.
_PRODUCT_COLUMNS = {"cpu": 1024, "cuda": 16384}
_SUM_COLUMNS = {"cpu": 8192}
_META: ContextVar[str] = ContextVar("meta", default="cpu")


@contextmanager
def meta_counts_as(device: str) -> Iterator[None]:
    """Inside the block, tensors without content (on torch's meta device) are cut as those on `device` would be."""
    token = _META.set(device)
    try:
        yield
    finally:
        _META.reset(token)


def _device_of(tensor: Tensor) -> str:
    """A key of the sizes above."""
    return _META.get() if tensor.is_meta else tensor.device.type


@dataclass(frozen=True)
class LogitSources:
    """What the logits of both sides are made of: `cap(W h) + W_2 u` for the draft, `cap(W g)` for the target.

    Args:
        hidden_ND: h, the draft's normed output.
        final_ND: g, the target's final normed states, of the same dtype.
        head_VD: W, the target's head, frozen.
        softcap: of `cap`; None without.
        factors_Nr, factor_head_Vr: u and W_2 of a sequential head; None without. This bias is added after the cap.

    Raises:
        ValueError: the head or the target's states require a gradient, or only one of the factors' two is there.
    """

    hidden_ND: Tensor
    final_ND: Tensor
    head_VD: Tensor
    softcap: float | None = None
    factors_Nr: Tensor | None = None
    factor_head_Vr: Tensor | None = None

    def __post_init__(self) -> None:
        if self.head_VD.requires_grad or self.final_ND.requires_grad:
            raise ValueError("the target's head and states are frozen: they get no gradient here")
        if (self.factors_Nr is None) != (self.factor_head_Vr is None):
            raise ValueError("factors and their head belong together")
        if self.hidden_ND.shape != self.final_ND.shape:
            raise ValueError(f"hidden {tuple(self.hidden_ND.shape)} and final {tuple(self.final_ND.shape)} differ")

    @property
    def wide_dtype(self) -> torch.dtype:
        """What everything but the products is computed in."""
        return torch.float64 if self.hidden_ND.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Chunk:
    """The logits of a chunk; a term may overwrite them.

    Args:
        rows: which of the N.
        draft_nV, target_nV: their logits.
        slope_nV: the soft cap's slope at the draft's, if that is needed.
    """

    rows: slice
    draft_nV: Tensor
    target_nV: Tensor
    slope_nV: Tensor | None

    def columns(self, width: int) -> Iterator[slice]:
        """All columns, `width` at a time."""
        return pieces(self.draft_nV.shape[1], width)


class Term(Protocol):
    """What happens to a chunk once its logits are there."""

    def __call__(self, chunk: Chunk, *, gradient: bool) -> None:
        """Note the values of its rows; with `gradient`, make `draft_nV` the loss's gradient by the draft's logits."""


def preallocated_gradient(parameter_Vr: Tensor | None) -> Tensor | None:
    """Where the gradient of `parameter_Vr` is being summed, if a chunk's can be added to it directly.

    That is its `.grad`, if there is one of a dtype fit for sums. None while no gradient is taken. Not for a parameter
    with a hook on its gradient: autograd does not see what is added here.
    """
    if parameter_Vr is None or not (torch.is_grad_enabled() and parameter_Vr.is_leaf and parameter_Vr.requires_grad):
        return None
    gradient_Vr = parameter_Vr.grad
    fit = gradient_Vr is not None and gradient_Vr.dtype in {torch.float32, torch.float64}
    return gradient_Vr if fit else None


class _Gradients:
    """The gradients of one sweep, filled chunk by chunk; None for what needs none.

    Args:
        sources: whose gradients.
        factor_head_gradient_Vr: W_2's is added to this, if given.
    """

    def __init__(self, sources: LogitSources, factor_head_gradient_Vr: Tensor | None) -> None:
        wanted = torch.is_grad_enabled()

        def room(source: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
            return torch.zeros_like(source, dtype=dtype) if source is not None and source.requires_grad else None

        self.hidden_ND = room(sources.hidden_ND) if wanted else None
        self.factors_Nr = room(sources.factors_Nr) if wanted else None
        self.factor_head_Vr: Tensor | None = None
        if wanted and sources.factor_head_Vr is not None and sources.factor_head_Vr.requires_grad:
            self.factor_head_Vr = factor_head_gradient_Vr
            if factor_head_gradient_Vr is None:
                # A sum over chunks: in fp32.
                self.factor_head_Vr = room(sources.factor_head_Vr, sources.wide_dtype)
        self.is_added = self.factor_head_Vr is not None and self.factor_head_Vr is factor_head_gradient_Vr
        self.any = any(g is not None for g in (self.hidden_ND, self.factors_Nr, self.factor_head_Vr))


class _Buffers:
    """The memory of a chunk, the same for all of them.

    Args:
        sources: of the logits.
        rows: most rows of a chunk.
        gradient: whether gradients will be taken.
    """

    def __init__(self, sources: LogitSources, rows: int, *, gradient: bool) -> None:
        vocab = sources.head_VD.shape[0]
        self.logits_2nV = sources.head_VD.new_empty(2 * rows, vocab, dtype=sources.wide_dtype)
        # Products of narrow inputs are narrow: room for a piece of both sides' logits, and for the draft's gradient.
        narrow = sources.hidden_ND.dtype != sources.wide_dtype
        elements = rows * max(vocab, 2 * _product_columns(sources))
        self._narrow = sources.head_VD.new_empty(elements) if narrow else None
        sloped = gradient and sources.softcap is not None
        self.slope_nV = sources.head_VD.new_empty(rows, vocab, dtype=sources.wide_dtype) if sloped else None

    def narrow(self, rows: int, columns: int) -> Tensor | None:
        """Room of that shape in the inputs' dtype, the same memory each time; None where that is the wide one."""
        return None if self._narrow is None else self._narrow[: rows * columns].view(rows, columns)

    @staticmethod
    def row_bytes(sources: LogitSources, *, gradient: bool) -> int:
        """Bytes per row of a chunk."""
        vocab = sources.head_VD.shape[0]
        wide, narrow = sources.wide_dtype.itemsize, sources.hidden_ND.dtype.itemsize
        size = vocab * wide * (3 if gradient and sources.softcap is not None else 2)
        return size + (0 if wide == narrow else narrow * max(vocab, 2 * _product_columns(sources)))


def _product_columns(sources: LogitSources) -> int:
    vocab = sources.head_VD.shape[0]
    return min(_PRODUCT_COLUMNS.get(_device_of(sources.head_VD), vocab), vocab)


def pieces(total: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, size))


def sweep(
    sources: LogitSources, term: Term, factor_head_gradient_Vr: Tensor | None, rows_per_chunk: int | None
) -> _Gradients:
    """Go through all rows, chunk by chunk; returns the gradients."""
    gradients = _Gradients(sources, factor_head_gradient_Vr)
    num_rows, device = sources.hidden_ND.shape[0], _device_of(sources.head_VD)
    row_bytes = _Buffers.row_bytes(sources, gradient=gradients.any)
    size = min(rows_per_chunk or _chunk_rows(num_rows, row_bytes, device), num_rows)
    with torch.no_grad():
        buffers = _Buffers(sources, size, gradient=gradients.any)
        starts = range(0, num_rows, size or 1)
        # Chunks without content differ in nothing that could be counted.
        for start in starts[:1] if sources.head_VD.is_meta else starts:
            rows = slice(start, min(start + size, num_rows))
            chunk = _logits(sources, rows, buffers)
            term(chunk, gradient=gradients.any)
            if gradients.any:
                _add_chunk(gradients, sources, chunk, buffers)
    return gradients


def _chunk_rows(num_rows: int, row_bytes: int, device: str) -> int:
    """How many rows a chunk has: as many as are worth it and fit the budget, all chunks alike."""
    most = max(1, min(_MOST_BYTES.get(device, _MOST_BYTES["cpu"]) // row_bytes, _MOST_ROWS.get(device, 128)))
    num_chunks = max(1, -(-num_rows // most))
    return -(-num_rows // num_chunks)


def _logits(sources: LogitSources, rows: slice, buffers: _Buffers) -> Chunk:
    """The logits of some rows, in the buffers."""
    inputs_2nD = torch.cat([sources.hidden_ND[rows], sources.final_ND[rows]])
    num_rows = len(inputs_2nD) // 2
    both_2nV = buffers.logits_2nV[: 2 * num_rows]
    slope_nV = None if buffers.slope_nV is None else buffers.slope_nV[:num_rows]
    for columns in pieces(both_2nV.shape[1], _product_columns(sources)):
        both_2nv = both_2nV[:, columns]
        # One product for both sides: the head is read once.
        _project(inputs_2nD, sources.head_VD[columns], both_2nv, buffers)
        if sources.softcap is not None:
            both_2nv.div_(sources.softcap).tanh_()
            if slope_nV is not None:
                torch.mul(both_2nv[:num_rows], both_2nv[:num_rows], out=slope_nV[:, columns]).neg_().add_(1)
            both_2nv.mul_(sources.softcap)
        if sources.factors_Nr is not None and sources.factor_head_Vr is not None:
            _project(sources.factors_Nr[rows], sources.factor_head_Vr[columns], both_2nv[:num_rows], buffers, add=True)
    return Chunk(rows, both_2nV[:num_rows], both_2nV[num_rows:], slope_nV)


def _project(inputs_nD: Tensor, table_vD: Tensor, out_nv: Tensor, buffers: _Buffers, *, add: bool = False) -> None:
    """`inputs · tableᵀ`, rounded to their dtype, written to `out_nv` or added to it."""
    narrow_nv = buffers.narrow(*out_nv.shape)
    if narrow_nv is None:
        # beta 0 never reads what was there, NaN or not.
        out_nv.addmm_(inputs_nD, table_vD.T, beta=1 if add else 0)
        return
    torch.mm(inputs_nD, table_vD.T, out=narrow_nv)
    if add:
        out_nv.add_(narrow_nv)
    else:
        out_nv.copy_(narrow_nv)


def _sum_product(left_nV: Tensor, right_VD: Tensor, out_nD: Tensor) -> None:
    """`left · right`, where the sum goes over a vocabulary, written to `out`."""
    columns = _SUM_COLUMNS.get(_device_of(right_VD), len(right_VD))
    # Narrow sums of sums would be rounded after every piece.
    if columns >= len(right_VD) or out_nD.dtype not in {torch.float32, torch.float64}:
        torch.mm(left_nV, right_VD, out=out_nD)
        return
    out_nD.zero_()
    for piece in pieces(right_VD.shape[0], columns):
        out_nD.addmm_(left_nV[:, piece], right_VD[piece])


def _add_chunk(gradients: _Gradients, sources: LogitSources, chunk: Chunk, buffers: _Buffers) -> None:
    """From the gradient by a chunk's logits to those by what they are made of."""
    gradient_nV = chunk.draft_nV

    def narrowed() -> Tensor:
        # What autograd does where the eager twin widens its logits.
        narrow_nV = buffers.narrow(*gradient_nV.shape)
        return gradient_nV if narrow_nV is None else narrow_nV.copy_(gradient_nV)

    if sources.factors_Nr is not None and sources.factor_head_Vr is not None:
        bias_nV = narrowed()
        if gradients.factors_Nr is not None:
            torch.mm(bias_nV, sources.factor_head_Vr, out=gradients.factors_Nr[chunk.rows])
        if gradients.factor_head_Vr is not None:
            factors_nr = sources.factors_Nr[chunk.rows]
            if gradients.factor_head_Vr.dtype == bias_nV.dtype:
                gradients.factor_head_Vr.addmm_(bias_nV.T, factors_nr)
            else:
                gradients.factor_head_Vr.add_(bias_nV.T @ factors_nr)
    if gradients.hidden_ND is not None:
        # Only now: the sequential bias is not capped.
        if chunk.slope_nV is not None:
            gradient_nV.mul_(chunk.slope_nV)
        _sum_product(narrowed(), sources.head_VD, gradients.hidden_ND[chunk.rows])


class _Known(torch.autograd.Function):
    """A value whose gradients are known already; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        gradients: Sequence[Tensor | None],
        is_added: bool,  # noqa: FBT001  # autograd functions take no keywords
        *inputs: Tensor | None,  # noqa: ARG004  # autograd connects them
    ) -> Tensor:
        # Not `save_for_backward`: the backward gives them away, so that they can become a `.grad` without a copy.
        ctx.gradients = gradients
        ctx.is_added = is_added
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a chunked loss are given away by its first backward")
        if ctx.is_added:
            # Not read back: the device itself checks it, some time later.
            torch._assert_async(upstream == 1, "a gradient was added already: the loss cannot be scaled any more")  # noqa: SLF001  # as torch exports it
        return (None, None, None, *(None if g is None else g.mul_(upstream) for g in gradients))


def attach(value: Tensor, sources: LogitSources, gradients: _Gradients) -> Tensor:
    """`value` with its gradients."""
    if not gradients.any:
        return value
    inputs = (sources.hidden_ND, sources.factors_Nr, sources.factor_head_Vr)
    factor_head_Vr = None if gradients.is_added else gradients.factor_head_Vr
    known = (gradients.hidden_ND, gradients.factors_Nr, factor_head_Vr)
    loss: Tensor = _Known.apply(value, known, gradients.is_added, *inputs)  # type: ignore[no-untyped-call]  # torch's is
    return loss
