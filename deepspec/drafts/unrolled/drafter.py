"""An autoregressive draft inside decoding: one token a step, its own outputs fed back.

The draft's cache holds pairs: the target's feature at position i with the token at i + 1, rotated to i. The last
committed position's feature waits for its token: the anchor, known when the draft is asked to propose. That pair gives
the first token; each further step reads the token just drafted and the draft's own output before the final norm. What
such steps wrote behind the pairs is overwritten later. Inference only.

Shapes: R rows, Q positions, L captured layers, D hidden, B layers of the draft, H key/value heads, d head dim,
C capacity, K draft positions, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspec.drafts.algorithm import Proposal, ints
from deepspec.drafts.unrolled.module import UnrolledDraft
from deepspec.losses.terms import soft_cap, wide
from deepspec.targets.layers import additive, attend
from deepspec.targets.rotary import Rotary

if TYPE_CHECKING:
    from deepspec.drafts.algorithm import Ints, Sample


class UnrolledDrafter:
    """Drafter over an `UnrolledDraft`; see the `Drafter` contract."""

    def __init__(self, draft: UnrolledDraft) -> None:
        self.num_draft_tokens = draft.num_steps
        self.layer_ids = draft.layer_ids
        self.vocab_size = draft.spec.vocab_size
        self._draft = draft
        self._spec = draft.spec
        self._rotary = Rotary(draft.spec)
        self._lengths: list[int] = []
        """Context positions each row was given."""
        self._pairs: list[int] = []
        """How many pairs its cache holds: one less, or all once the anchor has completed the last one."""
        self._keys: Tensor = draft.fc.weight.detach().new_empty(0)
        self._values: Tensor = self._keys
        self._waiting_RD: Tensor = self._keys

    def allocate(self, rows: int, capacity: int) -> None:
        """See `Drafter.allocate`; memory: 2 · layers · rows · (capacity + K) · H · d."""
        spec = self._spec
        shape = (
            len(self._draft.body),
            rows,
            spec.num_key_value_heads,
            capacity + self.num_draft_tokens,
            spec.head_dim,
        )
        weight = self._draft.fc.weight.detach()
        # Zeros: what is masked must still be finite.
        with torch.inference_mode(mode=False):
            self._keys = weight.new_zeros(shape)
            self._values = weight.new_zeros(shape)
            self._waiting_RD = weight.new_zeros(rows, spec.hidden_size)
        self._lengths = [0] * rows
        self._pairs = [0] * rows

    def reset(self, row: int) -> None:
        """See `Drafter.reset`."""
        self._lengths[row] = self._pairs[row] = 0

    @torch.no_grad()
    def advance(
        self, rows: "Ints", states_RQLD: Tensor, input_ids_RQ: Tensor, start_R: "Ints", counts_R: "Ints"
    ) -> None:
        """See `Drafter.advance`.

        Raises:
            ValueError: a row's start is not where its context ends, or it would outgrow the capacity.
        """
        row_list, starts, counts = ints(rows), ints(start_R), ints(counts_R)
        for row, start, count in zip(row_list, starts, counts, strict=True):
            if start != self._lengths[row]:
                raise ValueError(f"row {row} has {self._lengths[row]} context positions, not {start}")
            self._check_room(row, start + count)
        device = states_RQLD.device
        rows_R = torch.tensor(row_list, device=device)
        features_RQD = self._draft.fc(states_RQLD.flatten(2).to(self._waiting_RD.dtype))
        # Column q is position start - 1 + q: the one that waits, then the new ones. Its token is input_ids[:, q].
        features_RQD = torch.cat((self._waiting_RD[rows_R, None], features_RQD), dim=1)
        starts_R1, counts_R1 = (torch.tensor(values, device=device)[:, None] for values in (starts, counts))
        pairs_R1 = torch.tensor([self._pairs[row] for row in row_list], device=device)[:, None]
        columns_Q = torch.arange(states_RQLD.shape[1], device=device)
        positions_RQ = starts_R1 - 1 + columns_Q
        new_RQ = (positions_RQ >= pairs_R1) & (columns_Q < counts_R1)
        # What is not new is computed at a harmless place and written nowhere.
        positions_RQ = positions_RQ.clamp_min(0)
        # What stands behind a row's last valid state may be anything: it must not reach the others as NaN.
        read_RQD = features_RQD[:, :-1].masked_fill(~new_RQ[..., None], 0.0)
        self._forward(rows_R, read_RQD, input_ids_RQ, positions_RQ, new_RQ, cache_only=True)
        filled = counts_R1 > 0
        last_RD = features_RQD.gather(1, counts_R1[..., None].expand(-1, -1, features_RQD.shape[-1]))[:, 0]
        self._waiting_RD[rows_R] = torch.where(filled, last_RD, self._waiting_RD[rows_R])
        for row, start, count in zip(row_list, starts, counts, strict=True):
            self._lengths[row] = start + count
            self._pairs[row] = max(self._pairs[row], start + count - 1)

    @torch.no_grad()
    def propose(self, rows: "Ints", anchor_ids_R: Tensor, positions_R: "Ints", sample: "Sample") -> Proposal:
        """See `Drafter.propose`.

        Raises:
            ValueError: a row's context does not end right before its anchor, or is empty.
        """
        row_list, positions = ints(rows), ints(positions_R)
        for row, position in zip(row_list, positions, strict=True):
            if position != self._lengths[row]:
                raise ValueError(f"row {row} has {self._lengths[row]} context positions before an anchor at {position}")
            if position == 0:
                raise ValueError(f"row {row} has no context: there is no state to draft from")
            self._pairs[row] = position
        rows_R = torch.tensor(row_list, device=anchor_ids_R.device)
        at_R1 = torch.tensor(positions, device=anchor_ids_R.device)[:, None] - 1
        valid_R1 = torch.ones_like(at_R1, dtype=torch.bool)
        x_R1D, token_R = self._waiting_RD[rows_R, None], anchor_ids_R
        tokens, probs = [], []
        for step in range(self.num_draft_tokens):
            x_R1D = self._forward(rows_R, x_R1D, token_R[:, None], at_R1 + step, valid_R1)
            logits_RV = wide(F.linear(self._draft.norm(x_R1D[:, 0]), self._draft.lm_head.weight))
            token_R, probs_RV = sample(soft_cap(logits_RV, self._spec.logit_softcap), step)
            tokens.append(token_R)
            if probs_RV is not None:
                probs.append(probs_RV)
        return Proposal(torch.stack(tokens, dim=1), torch.stack(probs, dim=1) if probs else None, None)

    def _forward(
        self,
        rows_R: Tensor,
        x_RQD: Tensor,
        input_ids_RQ: Tensor,
        positions_RQ: Tensor,
        valid_RQ: Tensor,
        *,
        cache_only: bool = False,
    ) -> Tensor:
        """The draft's un-normed output [R, Q, D]; keys and values of valid positions are written to the cache.

        Args:
            rows_R: cache rows.
            x_RQD: features, or the draft's own earlier output.
            input_ids_RQ: the token after each position.
            positions_RQ: where the pairs stand.
            valid_RQ: which are real.
            cache_only: only the cache matters: the last layer's output is left out.
        """
        embedded_RQD = self._draft.embed(input_ids_RQ)
        rotations = self._rotary.lookup(positions_RQ, x_RQD.dtype, limit=self._keys.shape[3])
        at_N = positions_RQ[valid_RQ]
        row_N = rows_R[:, None].expand_as(positions_RQ)[valid_RQ]
        mask: Tensor | None = None
        end = 0
        for index, layer in enumerate(self._draft.body):
            attention = layer.self_attn
            read = layer.attention_input(embedded_RQD, x_RQD)
            keys, values = attention.keys_and_values(read, rotations)
            # Two index tensors around a slice: the indexed axis comes first, [N, H, d].
            self._keys[index][row_N, :, at_N] = keys[valid_RQ]
            self._values[index][row_N, :, at_N] = values[valid_RQ]
            if cache_only and index == len(self._draft.body) - 1:
                break
            if mask is None:
                end = int(positions_RQ.max()) + 1
                visible_RQK = torch.arange(end, device=x_RQD.device) <= positions_RQ[..., None]
                mask = additive(visible_RQK[:, None], x_RQD.dtype)
            attended = attend(
                attention.queries(read, rotations).transpose(1, 2),
                self._keys[index][rows_R, :, :end],
                self._values[index][rows_R, :, :end],
                mask,
                scale=attention.scale,
                causal=False,
            )
            x_RQD = layer.finish(x_RQD, attended.transpose(1, 2))
        return x_RQD

    def _check_room(self, row: int, end: int) -> None:
        capacity = self._keys.shape[3] - self.num_draft_tokens
        if end > capacity:
            raise ValueError(f"row {row} would need {end} context positions, but there is room for {capacity}")
