"""A block-parallel draft inside decoding: context keys and values kept in place, one pass per proposed block.

Context keys and values of all layers come from the same features, so they are made by one product per committed
position and never again. A block's own keys are written behind the context, where later context overwrites them: no
concatenation. Inference only; weights are read (and fused copies made) when the drafter is made.

Shapes: R rows, Q positions, P positions of a block, K predicting positions, L captured layers, B layers of the body,
D hidden, H key/value heads, d head dim, C capacity, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspec.drafts.algorithm import Proposal, ints
from deepspec.drafts.block.heads import Chain
from deepspec.drafts.block.module import BlockDraft
from deepspec.losses.terms import soft_cap, wide
from deepspec.targets import family_of
from deepspec.targets.layers import FusedLayer, additive, attend, rms_norm
from deepspec.targets.rotary import Rotary, rotate

if TYPE_CHECKING:
    from deepspec.drafts.algorithm import Ints, Sample


class BlockDrafter:
    """Drafter over a `BlockDraft`; see the `Drafter` contract.

    Args:
        draft: with its weights.
        chain: starts the drawing of a block.
    """

    def __init__(self, draft: BlockDraft, chain: Callable[[], Chain]) -> None:
        spec, family = draft.spec, family_of(draft.spec)
        self.num_draft_tokens = draft.num_draft_tokens
        self._block_size = draft.block_size
        self.layer_ids = draft.layer_ids
        self.vocab_size = spec.vocab_size
        self._draft = draft
        self._chain = chain
        self._spec = spec
        self._casts_first = family.norm_casts_first
        self._value_norm = family.value_norm
        self._rotary = Rotary(spec)
        self._layers = [
            FusedLayer({**dict(layer.named_parameters()), **dict(layer.named_buffers())}, spec, family, where="draft")
            for layer in draft.layers
        ]
        self._fc_SD = draft.fc.weight.detach().t().contiguous()
        projections = [
            layer.get_parameter(f"self_attn.{name}.weight").detach()
            for layer in draft.layers
            for name in (("k_proj",) if spec.value_from_keys else ("k_proj", "v_proj"))
        ]
        self._context_DF = torch.cat([weight.t() for weight in projections], dim=1).contiguous()
        key_norms = [layer.get_parameter("self_attn.k_norm.weight").detach() for layer in draft.layers]
        self._key_norm_B1d = torch.stack(key_norms)[:, None]
        self._head_VD = draft.lm_head.weight.detach()
        self._offsets_P = torch.arange(draft.block_size, device=self._head_VD.device)
        self._mask_ids_P = torch.full((draft.block_size,), draft.mask_token_id, device=self._head_VD.device)
        self._lengths: list[int] = []
        self._keys: Tensor = self._head_VD.new_empty(0)
        self._values: Tensor = self._keys

    def allocate(self, rows: int, capacity: int) -> None:
        """See `Drafter.allocate`; memory: 2 · layers · rows · (capacity + P) · H · d."""
        spec = self._spec
        shape = (len(self._layers), rows, spec.num_key_value_heads, capacity + self._block_size, spec.head_dim)
        # Zeros: what is masked must still be finite.
        with torch.inference_mode(mode=False):
            self._keys = self._head_VD.new_zeros(shape)
            self._values = self._head_VD.new_zeros(shape)
        self._lengths = [0] * rows

    def reset(self, row: int) -> None:
        """See `Drafter.reset`."""
        self._lengths[row] = 0

    @torch.no_grad()
    def advance(
        self,
        rows: "Ints",
        states_RQLD: Tensor,
        input_ids_RQ: Tensor,  # noqa: ARG002  # other algorithms read the tokens
        start_R: "Ints",
        counts_R: "Ints",
    ) -> None:
        """See `Drafter.advance`; cost: one product per layer and position.

        Raises:
            ValueError: a row's start is not where its context ends, or it would outgrow the capacity.
        """
        row_list, starts, counts = ints(rows), ints(start_R), ints(counts_R)
        for row, start, count in zip(row_list, starts, counts, strict=True):
            if start != self._lengths[row]:
                raise ValueError(f"row {row} has {self._lengths[row]} context positions, not {start}")
            self._check_room(row, start + count)
        device = states_RQLD.device
        if len(row_list) == 1:
            start, end = starts[0], starts[0] + counts[0]
            if end > start:
                positions_N = torch.arange(start, end, device=device)
                keys, values = self._context(states_RQLD[0, : counts[0]], positions_N)
                self._keys[:, row_list[0], :, start:end] = keys.permute(1, 2, 0, 3)
                self._values[:, row_list[0], :, start:end] = values.permute(1, 2, 0, 3)
        else:
            counts_R1 = torch.tensor(counts, device=device)[:, None]
            row_N, column_N = (torch.arange(states_RQLD.shape[1], device=device) < counts_R1).nonzero(as_tuple=True)
            positions_N = torch.tensor(starts, device=device)[row_N] + column_N
            keys, values = self._context(states_RQLD[row_N, column_N], positions_N)
            at_N = torch.tensor(row_list, device=device)[row_N]
            # Two index tensors around a slice: the indexed axis comes first, [N, B, H, d].
            self._keys[:, at_N, :, positions_N] = keys
            self._values[:, at_N, :, positions_N] = values
        for row, start, count in zip(row_list, starts, counts, strict=True):
            self._lengths[row] = start + count

    @torch.no_grad()
    def propose(self, rows: "Ints", anchor_ids_R: Tensor, positions_R: "Ints", sample: "Sample") -> Proposal:
        """See `Drafter.propose`.

        Raises:
            ValueError: a row's context does not end right before its anchor.
        """
        row_list, positions = ints(rows), ints(positions_R)
        for row, position in zip(row_list, positions, strict=True):
            if position != self._lengths[row]:
                raise ValueError(f"row {row} has {self._lengths[row]} context positions before an anchor at {position}")
        hidden_RKD = self._body(row_list, positions, anchor_ids_R)
        return self._sample_block(hidden_RKD, anchor_ids_R, sample)

    def _context(self, states_NLD: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of context positions for all layers, [N, B, H, d]."""
        spec = self._spec
        dtype = self._fc_SD.dtype
        features_ND = torch.mm(states_NLD.flatten(1).to(dtype), self._fc_SD)
        features_ND = self._norm(features_ND, self._draft.hidden_norm.weight.detach())
        projected = torch.mm(features_ND, self._context_DF)
        parts = 1 if spec.value_from_keys else 2
        projected = projected.view(len(positions_N), len(self._layers), parts, spec.num_key_value_heads, spec.head_dim)
        raw, values = projected[:, :, 0], projected[:, :, -1]
        if self._value_norm:
            values = self._norm(values, None)
        cos, sin = self._rotary.lookup(positions_N[:, None], dtype, limit=self._keys.shape[3])
        return rotate(self._norm(raw, self._key_norm_B1d), cos, sin), values

    def _body(self, rows: list[int], positions: list[int], anchor_ids_R: Tensor) -> Tensor:
        """The body's normed output [R, K, D] for a block behind each row's context."""
        device = self._keys.device
        ids_RP = self._mask_ids_P.repeat(len(rows), 1)
        ids_RP[:, 0] = anchor_ids_R
        end = max(positions) + self._block_size
        same = min(positions) == max(positions)
        contiguous = rows[-1] - rows[0] == len(rows) - 1 and rows == sorted(rows)
        columns_RP = self._offsets_P + (positions[0] if same else torch.tensor(positions, device=device)[:, None])
        at_RP = columns_RP.expand(len(rows), -1)
        cos, sin = self._rotary.lookup(at_RP, self._keys.dtype, limit=self._keys.shape[3])
        rows_R = None if contiguous else torch.tensor(rows, device=device)
        rows_R1 = torch.tensor(rows, device=device)[:, None] if not (contiguous and same) else None
        mask = None
        if not same:
            visible = torch.arange(end, device=device) <= at_RP[:, -1:]
            mask = additive(visible[:, None, None], self._keys.dtype)
        x_RPD = self._draft.embed(ids_RP)
        for layer, layer_keys, layer_values in zip(self._layers, self._keys, self._values, strict=True):
            queries, keys, values = layer.project(x_RPD, cos, sin)
            if rows_R1 is None:
                span = slice(rows[0], rows[0] + len(rows))
                layer_keys[span, :, positions[0] : end] = keys
                layer_values[span, :, positions[0] : end] = values
            else:
                layer_keys[rows_R1, :, at_RP] = keys.transpose(1, 2)
                layer_values[rows_R1, :, at_RP] = values.transpose(1, 2)
            all_keys, all_values = (
                cached[rows[0] : rows[0] + len(rows), :, :end] if rows_R is None else cached[rows_R, :, :end]
                for cached in (layer_keys, layer_values)
            )
            attended = attend(queries, all_keys, all_values, mask, scale=self._spec.attention_scale, causal=False)
            x_RPD = layer.finish(x_RPD, attended)
        predicting_RKD = x_RPD[:, self._block_size - self.num_draft_tokens :]
        return self._norm(predicting_RKD, self._draft.norm.weight.detach())

    def _sample_block(self, hidden_RKD: Tensor, anchor_ids_R: Tensor, sample: "Sample") -> Proposal:
        """Draw the positions left to right, each knowing the token before it."""
        logits_RKV = soft_cap(wide(F.linear(hidden_RKD, self._head_VD)), self._spec.logit_softcap)
        chain, previous_R = self._chain(), anchor_ids_R
        tokens, probs = [], []
        for position, logits_RV in enumerate(logits_RKV.unbind(1)):
            previous_R, probs_RV = sample(chain.logits(logits_RV, hidden_RKD[:, position], previous_R), position)
            tokens.append(previous_R)
            if probs_RV is not None:
                probs.append(probs_RV)
        probs_RKV = torch.stack(probs, dim=1) if probs else None
        return Proposal(torch.stack(tokens, dim=1), probs_RKV, chain.confidence(hidden_RKD))

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return rms_norm(x, weight, self._spec.rms_norm_eps, casts_first=self._casts_first)

    def _check_room(self, row: int, end: int) -> None:
        capacity = self._keys.shape[3] - self._block_size
        if end > capacity:
            raise ValueError(f"row {row} would need {end} context positions, but there is room for {capacity}")
