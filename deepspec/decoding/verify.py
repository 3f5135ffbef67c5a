"""The rule that makes speculative decoding lossless, as pure functions.

What is committed is distributed exactly as the target alone would have drawn it, whatever the draft proposes: a
proposed token y is accepted with probability min(1, p(y)/q(y)), and the first rejected one is replaced by a draw from
max(0, p - q), normalised. q must be the very numbers that y was drawn from. Nothing here knows models or caches.

Legend: R rows, K draft positions, Q = K+1 verified positions (anchor first), V vocabulary.
Source: Leviathan et al. 2023 (arXiv 2211.17192), appendix A.1.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepspec.decoding.sampling import draw

SMALLEST_RESIDUAL = 1e-8
"""Below this mass max(0, p - q) is rounding noise of p = q: the replacement is drawn from p."""


class Verification(NamedTuple):
    """What the target accepts of one proposal per row, and what it adds."""

    accepted_R: Tensor
    """int64, how many draft tokens are accepted, 0 … K"""
    bonus_R: Tensor
    """int64, the token the target adds after them; V where the target's numbers were NaN"""


class Commit(NamedTuple):
    """One round as it counts: after the cut at a stop token."""

    ids: list[int]
    """the committed tokens, bonus included unless a stop token among the drafts ended the answer"""
    proposed: int
    """effective proposal length: up to and including an accepted stop token"""
    accepted: int
    stopped: bool


def verify_greedy(target_RQ: Tensor, drafted_RK: Tensor, num_proposed_R: Tensor | None = None) -> Verification:
    """Accept drafts as long as they are what the target would have taken.

    Args:
        target_RQ: int64, the target's likeliest token after each verified position.
        drafted_RK: int64 proposals.
        num_proposed_R: int64, positions from here on hold nothing; None: all K are proposals.

    Returns:
        Accepted drafts and bonus: the bonus is the target's token after the last accepted one.
    """
    accepted_R = _longest_prefix(target_RQ[:, :-1] == drafted_RK, num_proposed_R)
    return Verification(accepted_R, target_RQ.gather(1, accepted_R.unsqueeze(1)).squeeze(1))


def verify_sampled(
    p_RQV: Tensor,
    q_RKV: Tensor,
    drafted_RK: Tensor,
    accept_uniforms_RK: Tensor,
    bonus_uniforms_RQ: Tensor,
    num_proposed_R: Tensor | None = None,
) -> Verification:
    """Accept drafts by the ratio test, then draw the replacement or the extra token.

    Args:
        p_RQV: fp32, the target's distribution after each verified position.
        q_RKV: fp32, the distributions that `drafted_RK` were drawn from.
        drafted_RK: int64 proposals.
        accept_uniforms_RK: fp64 in [0, 1), one per proposal.
        bonus_uniforms_RQ: fp64 in [0, 1), entry j is used when j drafts are accepted.
        num_proposed_R: int64, positions from here on hold nothing; None: all K are proposals.

    Returns:
        Accepted drafts and bonus.
    """
    token_RK1 = drafted_RK.unsqueeze(-1)
    p_RK = p_RQV[:, :-1].gather(-1, token_RK1).squeeze(-1)
    q_RK = q_RKV.gather(-1, token_RK1).squeeze(-1)
    accepted_R = _longest_prefix(accept_uniforms_RK * q_RK < p_RK, num_proposed_R)
    row_R = torch.arange(accepted_R.shape[0], device=accepted_R.device)
    replacement_RV = p_RQV[row_R, accepted_R]
    if q_RKV.shape[1] > 0:
        num_proposed = drafted_RK.shape[1] if num_proposed_R is None else num_proposed_R
        tested_RV = q_RKV[row_R, accepted_R.clamp(max=drafted_RK.shape[1] - 1)]
        rejected_R1 = (accepted_R < num_proposed).unsqueeze(1)
        replacement_RV = torch.where(rejected_R1, residual(replacement_RV, tested_RV), replacement_RV)
    bonus_uniform_R = bonus_uniforms_RQ.gather(1, accepted_R.unsqueeze(1)).squeeze(1)
    return Verification(accepted_R, draw(replacement_RV, bonus_uniform_R))


def residual(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """What a rejected token is replaced from: the part of p that q does not cover.

    Args:
        p_NV: fp32 target distribution.
        q_NV: fp32 draft distribution.

    Returns:
        fp32 [N, V] weights, not normalised; p itself where the remaining mass is at most 1e-8.
    """
    uncovered_NV = (p_NV - q_NV).clamp_(min=0.0)
    mass_N1 = uncovered_NV.sum(dim=-1, keepdim=True)
    return torch.where(mass_N1 > SMALLEST_RESIDUAL, uncovered_NV, p_NV)


def commit(drafted: Sequence[int], accepted: int, bonus: int, stop_ids: Collection[int]) -> Commit:
    """The tokens that a verification appends, cut at the first stop token.

    Args:
        drafted: all proposed tokens of the row.
        accepted: how many of them the target accepted.
        bonus: the target's own token.
        stop_ids: tokens that end an answer; they are part of it.

    Returns:
        The round as it counts. A stop token among the accepted drafts at 1-based position e makes accepted = proposed
        = committed = e: no bonus. A stop token as bonus counts normally.
    """
    for index in range(accepted):
        if drafted[index] in stop_ids:
            length = index + 1
            return Commit(list(drafted[:length]), length, length, stopped=True)
    return Commit([*drafted[:accepted], bonus], len(drafted), accepted, bonus in stop_ids)


def _longest_prefix(accept_RK: Tensor, num_proposed_R: Tensor | None) -> Tensor:
    """Length of the leading run of True per row, int64 [R]."""
    if num_proposed_R is not None:
        position_K = torch.arange(accept_RK.shape[1], device=accept_RK.device)
        accept_RK = accept_RK & (position_K < num_proposed_R.unsqueeze(1))
    return accept_RK.cumprod(dim=1).sum(dim=1)
