"""Decodes many requests at once, with a draft or without one, each row at its own pace.

A round drafts K tokens after every row's anchor, runs the target once over [anchor, drafts], and commits per row what
verify.py says. Without a drafter K = 0 and the very same loop is plain decoding: the baseline that speedups are
measured against has the same batching, caches and overheads. A row that finishes is refilled from the queue at once.

Tokens depend on the request alone (prompt, limit, seed), not on the batch, the row or the order: rows share no
randomness, and attention never crosses rows. (To rounding: a batched matrix product may differ in the last bit.)

Positions: let b be the anchor's position, the last committed token, which has not been through the target. Caches hold
0 … b-1; the target verifies at b … b+K; with j accepted they are cropped to b+j+1 and the new anchor stands at b+j+1.

Running rows take the first rows of the cache (`cache_rows`), so that a step works on a view of it; a row's index in the
drafter and in the table of random numbers (`lane`) never changes.

Legend: R running rows, K draft positions, Q = K+1 verified positions, V vocabulary, G rows prefilled together.
A scheduler may have fewer drafts verified, or none drafted at a high load (scheduler.py); by default all are.
Not here: prompts as text, metrics, how a scheduler chooses.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepspec.decoding.completion import Completion, FinishReason, Request, Round, Seconds
from deepspec.decoding.config import Sampling
from deepspec.decoding.contexts import Contexts
from deepspec.decoding.draws import TokenDraws
from deepspec.decoding.scheduler import Scheduler
from deepspec.decoding.verify import commit
from deepspec.drafts.algorithm import Drafter, Proposal
from deepspec.errors import DataError, IncompatibleDraft, UnsupportedTarget
from deepspec.targets.cache import RowCache
from deepspec.targets.model import Target, real_positions, spread

PREFILL_TOKENS = 4096
"""Most padded positions of prompts that go through the target together."""
PREFILL_PADDING = 0.25
"""Most of these that may be padding: on a CPU padding costs what tokens cost, on a GPU a launch costs more."""


@dataclass(slots=True, eq=False)
class _Row:
    """A request while it is decoded."""

    request: Request
    limit: int
    lane: int
    output: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    started: float = 0.0
    prefill_seconds: float = 0.0
    shares_before: Seconds = field(default_factory=Seconds)
    stopped: bool = False

    @property
    def position(self) -> int:
        """Of the anchor."""
        return len(self.request.prompt_ids) + len(self.output) - 1

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.output) >= self.limit


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step of an engine.

    Attributes:
        rows: that it decoded.
        tokens: that the target verified, anchors included.
        draft: seconds of proposing, and of taking in the states of committed tokens.
        verify: of the target's forward, and of accepting.
        other: of the rest.
    """

    rows: int
    tokens: int
    draft: float
    verify: float
    other: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.draft + self.verify + self.other


class Engine:
    """Batched lossless decoding.

    Args:
        target: captures exactly the drafter's layers, if there is a drafter.
        drafter: proposes tokens; None decodes plainly.
        scheduler: chooses how much of what is drafted is verified; None: all of it.
        rows: most requests decoded at once.
        sampling: how tokens are drawn; its seed is not used here, requests bring their own.
        stop_ids: tokens that end an answer; None takes the target's.
        capacity: positions per row to reserve at least; grown when requests need more.
        exact_times: on a GPU, wait at every phase boundary so that `Seconds` splits truly; costs a little.
        on_step: called with the times of every step.

    Raises:
        IncompatibleDraft: the drafter reads other layers, or has another vocabulary, than the target.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        *,
        scheduler: Scheduler | None = None,
        rows: int = 1,
        sampling: Sampling | None = None,
        stop_ids: Iterable[int] | None = None,
        capacity: int = 0,
        exact_times: bool = False,
        on_step: Callable[[StepTimes], None] | None = None,
    ) -> None:
        if drafter is not None:
            _check_fit(target, drafter)
        self._target = target
        self._drafter = drafter
        self._scheduler = scheduler
        self._contexts = Contexts(drafter) if drafter is not None else None
        self._max_rows = rows
        self._num_draft_tokens = drafter.num_draft_tokens if drafter is not None else 0
        self._stop_ids = frozenset(target.eos_token_ids if stop_ids is None else stop_ids)
        self._draws = TokenDraws(sampling or Sampling(), target.spec.vocab_size, target.device)
        self._capacity = capacity
        self._cache: RowCache | None = None
        self._front: dict[int, RowCache] = {}
        self._shares = Seconds()
        self._on_step = on_step
        self._waits = exact_times and target.device.type == "cuda"
        self._running = False

    def run(self, requests: Sequence[Request]) -> Generator[Completion]:
        """Decode requests; yields each as it finishes, in no particular order.

        Args:
            requests: any number; more than `rows` wait in a queue. One `run` at a time.

        Raises:
            DataError: before anything is decoded: an empty prompt, one with unknown tokens, or one that leaves no
                room in the target's context.
            UnsupportedTarget: the target's logits are NaN.
            IncompatibleDraft: the draft's are.
        """
        if self._running:
            raise RuntimeError("this engine is already decoding: exhaust or close that iterator first")
        queue = deque(enumerate(self._limit(request) for request in requests))
        self._running = True
        try:
            yield from self._decode(requests, queue)
        except UnsupportedTarget:
            self._cache = None  # NaN in a cache would outlive the mask that hides it: 0 * NaN is NaN
            raise
        finally:
            self._running = False

    def _decode(self, requests: Sequence[Request], queue: deque[tuple[int, int]]) -> Iterator[Completion]:
        num_rows = min(self._max_rows, len(requests))
        self._reserve(num_rows, requests, [limit for _, limit in queue])
        cache_rows: list[_Row | None] = [None] * num_rows
        while True:
            while queue and None in cache_rows:
                first, group = _next_group(cache_rows, queue, requests)
                cache_rows[first : first + len(group)] = group
                self._prefill(first, group, len(cache_rows) - cache_rows.count(None))
                yield from self._release(cache_rows)
            running = self._compact(cache_rows)
            if not running:
                return
            self._round(running)
            yield from self._release(cache_rows)

    def _limit(self, request: Request) -> int:
        """How many tokens may be generated for `request`."""
        num_prompt = len(request.prompt_ids)
        context = self._target.spec.max_position_embeddings
        if num_prompt == 0:
            raise DataError("The prompt is empty.", where=f"request {request.id}", remedy="Leave it out.")
        if num_prompt >= context:
            raise DataError(
                f"The prompt has {num_prompt} tokens; the target's context holds {context}.",
                where=f"request {request.id}",
                remedy="Leave it out or shorten it.",
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._target.spec.vocab_size:
            raise DataError(
                f"The prompt holds a token outside the target's vocabulary of {self._target.spec.vocab_size}.",
                where=f"request {request.id}",
                remedy="Encode it with the target's own tokenizer.",
            )
        if request.max_new_tokens < 1:
            raise DataError(
                f"max_new_tokens is {request.max_new_tokens}.",
                where=f"request {request.id}",
                remedy="Ask for at least one token.",
            )
        return min(request.max_new_tokens, context - num_prompt)

    def _reserve(self, num_rows: int, requests: Sequence[Request], limits: Sequence[int]) -> None:
        """Make room in caches and tables for the longest request."""
        if not requests:
            return
        pairs = list(zip(requests, limits, strict=True))
        # The last round starts at most one token before the limit and may overrun it by K.
        needed = max(len(request.prompt_ids) + limit for request, limit in pairs) + self._num_draft_tokens
        self._capacity = max(self._capacity, needed)
        self._draws.allocate(num_rows, max(limits) + self._num_draft_tokens, self._num_draft_tokens)
        if (
            self._cache is not None
            and self._cache.capacity >= self._capacity
            and len(self._cache.lengths_B) >= num_rows
            and (self._contexts is None or self._contexts.are_held)
        ):
            return
        self._cache = self._target.allocate_cache(num_rows, self._capacity)
        self._front = {}
        if self._contexts is not None:
            self._contexts.allocate(num_rows, self._capacity)

    @torch.inference_mode()
    def _prefill(self, first: int, rows: Sequence[_Row], num_running: int) -> None:
        """Take prompts through the target and draw each answer's first token; cache rows from `first` on are theirs."""
        started = self._now()
        cache = self._all_rows().view(first, len(rows))
        lengths = [len(row.request.prompt_ids) for row in rows]
        cache.crop([0] * len(rows))
        device = self._target.device
        # Right padding is exact: attention is causal, and what is written behind a row's end is overwritten later.
        padded = [list(row.request.prompt_ids) + [0] * (max(lengths) - len(row.request.prompt_ids)) for row in rows]
        ids_GT = torch.tensor(padded, device=device)
        output = self._target.forward(ids_GT, cache=cache)
        cache.crop(lengths)
        last_GD = output.final_BQD[torch.arange(len(rows), device=device), torch.tensor(lengths, device=device) - 1]
        lanes = [row.lane for row in rows]
        self._draws.refill(lanes, [(row.request.seed, row.limit + self._num_draft_tokens) for row in rows])
        token_G1 = self._draws.plain(lanes, [0] * len(rows), self._target.logits(last_GD).unsqueeze(1))
        for row, token in zip(rows, token_G1.tolist(), strict=True):
            self._check_token(token, row)
            row.output.append(token)
            row.stopped = token in self._stop_ids
        if self._contexts is not None:
            self._contexts.reset(lanes)
            at_once = self._drafts(num_running)
            self._contexts.extend(lanes, output.states_BQLD, ids_GT, [0] * len(rows), lengths, at_once=at_once)
        share = (self._now() - started) / len(rows)
        for row in rows:
            row.started, row.prefill_seconds = started, share
            row.shares_before = self._shares

    @torch.inference_mode()
    def _round(self, rows: Sequence[_Row]) -> None:
        """Draft, verify and commit once for all running rows, which have the first cache rows in this order."""
        started = self._now()
        lanes = [row.lane for row in rows]
        # Number of the first token this round can add, counted in the answer: what its draws are keyed by.
        offsets = [len(row.output) for row in rows]
        anchor_R = torch.tensor([row.output[-1] for row in rows], device=self._target.device)
        proposal = self._propose(rows, lanes, offsets, anchor_R)
        drafted = self._now()
        proposal, num_proposed_R, counts = self._scheduled(proposal)
        ids_RQ = anchor_R.unsqueeze(1)
        if proposal is not None:
            ids_RQ = torch.cat([ids_RQ, proposal.tokens_RK], dim=1)
        cache = self._rows_in_front(len(rows))
        output = self._target.forward(ids_RQ, cache=cache, counts_B=counts)
        logits_RQV = self._logits(output.final_BQD, counts)
        if proposal is None:
            outcomes = [[0, token] for token in self._draws.plain(lanes, offsets, logits_RQV).tolist()]
            confidences: list[list[float]] | None = None
        else:
            outcomes = self._draws.verify(logits_RQV, proposal, num_proposed_R).tolist()
            confidences = proposal.confidence_RK.tolist() if proposal.confidence_RK is not None else None
        verified = self._now()
        for index, (row, (accepted, bonus, *tokens)) in enumerate(zip(rows, outcomes, strict=True)):
            self._check_draft(accepted, row)
            self._check_token(bonus, row)
            kept = tokens if counts is None else tokens[: counts[index] - 1]
            self._commit(row, kept, accepted, bonus, confidences[index] if confidences is not None else None)
        cache.crop([row.position if not row.finished else 0 for row in rows])
        committed = self._now()
        self._extend_contexts(rows, ids_RQ, output.states_BQLD)
        num_tokens = ids_RQ.numel() if counts is None else sum(counts)
        self._account(len(rows), num_tokens, started, drafted, verified, committed)

    def _propose(self, rows: Sequence[_Row], lanes: list[int], offsets: list[int], anchor_R: Tensor) -> Proposal | None:
        if self._drafter is None or self._contexts is None or not self._drafts(len(rows)):
            return None
        self._contexts.catch_up(lanes)
        sample = self._draws.start(lanes, offsets, self._num_draft_tokens)
        return self._drafter.propose(lanes, anchor_R, [row.position for row in rows], sample)

    def _drafts(self, num_rows: int) -> bool:
        """Whether a step over `num_rows` rows drafts."""
        return self._scheduler is None or self._scheduler.drafts(num_rows)

    def _scheduled(self, proposal: Proposal | None) -> tuple[Proposal | None, Tensor | None, list[int] | None]:
        """A proposal cut to its longest verified row, each row's verified length, and with its anchor as a list."""
        if proposal is None or self._scheduler is None:
            return proposal, None, None
        num_proposed_R = self._scheduler.lengths(proposal)
        counts = [length + 1 for length in num_proposed_R.tolist()]
        length = max(counts) - 1
        if length == 0:
            return None, None, None
        probs_RKV, confidence_RK = proposal.probs_RKV, proposal.confidence_RK
        cut = Proposal(
            proposal.tokens_RK[:, :length],
            probs_RKV if probs_RKV is None else probs_RKV[:, :length],
            confidence_RK if confidence_RK is None else confidence_RK[:, :length],
        )
        return cut, num_proposed_R, counts

    def _logits(self, final_RQD: Tensor, counts: list[int] | None) -> Tensor:
        """The target's logits [R, Q, V]; where few positions are real, zeros at the others."""
        rows, queries, _ = final_RQD.shape
        real_N = None if counts is None else real_positions(counts, queries, final_RQD.device)
        if real_N is None:
            return self._target.logits(final_RQD)
        logits_NV = self._target.logits(final_RQD.flatten(0, 1)[real_N])
        return spread(logits_NV[None], real_N, rows, queries)

    def _commit(self, row: _Row, tokens: list[int], accepted: int, bonus: int, confidence: list[float] | None) -> None:
        outcome = commit(tokens, accepted, bonus, self._stop_ids)
        known = tuple(confidence[: outcome.proposed]) if confidence is not None else ()
        row.rounds.append(Round(row.position, outcome.proposed, outcome.accepted, len(outcome.ids), known))
        row.output.extend(outcome.ids)
        row.stopped = outcome.stopped

    def _extend_contexts(self, rows: Sequence[_Row], ids_RQ: Tensor, states_RQLD: Tensor) -> None:
        """Hand over the states of what was just committed, for the rows that go on."""
        if self._contexts is None:
            return
        going = [index for index, row in enumerate(rows) if not row.finished]
        for row in rows:
            if row.finished:
                self._contexts.drop(row.lane)
        if not going:
            return
        if len(going) < len(rows):
            kept_R = torch.tensor(going, device=ids_RQ.device)
            ids_RQ, states_RQLD = ids_RQ[kept_R], states_RQLD[kept_R]
        lanes = [rows[index].lane for index in going]
        starts = [rows[index].rounds[-1].position for index in going]
        counts = [rows[index].rounds[-1].committed for index in going]
        self._contexts.extend(lanes, states_RQLD, ids_RQ, starts, counts, at_once=self._drafts(len(going)))

    def _release(self, cache_rows: list[_Row | None]) -> Iterator[Completion]:
        """Free the cache rows of finished rows and yield their answers."""
        for index, row in enumerate(cache_rows):
            if row is not None and row.finished:
                cache_rows[index] = None
                yield self._completion(row)

    def _completion(self, row: _Row) -> Completion:
        output = tuple(row.output[: row.limit])
        reason: FinishReason = "stop" if output[-1] in self._stop_ids else "length"
        now, before = self._shares, row.shares_before
        seconds = Seconds(
            row.prefill_seconds, now.draft - before.draft, now.verify - before.verify, now.other - before.other
        )
        elapsed = time.perf_counter() - row.started
        return Completion(row.request.id, output, reason, tuple(row.rounds), seconds, elapsed)

    def _compact(self, cache_rows: list[_Row | None]) -> list[_Row]:
        """Move running rows to the front of the cache; returns them in order."""
        running = [row for row in cache_rows if row is not None]
        if len(running) < len(cache_rows):
            for hole in range(len(running)):
                if cache_rows[hole] is None:
                    last = max(index for index, row in enumerate(cache_rows) if row is not None)
                    self._all_rows().move_row(last, hole)
                    cache_rows[hole], cache_rows[last] = cache_rows[last], None
            del cache_rows[len(running) :]
            running = [row for row in cache_rows if row is not None]
        return running

    def _all_rows(self) -> RowCache:
        if self._cache is None:
            raise RuntimeError("the cache is reserved by run")
        return self._cache

    def _rows_in_front(self, count: int) -> RowCache:
        view = self._front.get(count)
        if view is None:
            view = self._front[count] = self._all_rows().view(0, count)
        return view

    def _account(
        self, num_rows: int, num_tokens: int, started: float, drafted: float, verified: float, committed: float
    ) -> None:
        draft = drafted - started + self._now() - committed
        step = StepTimes(num_rows, num_tokens, draft, verified - drafted, committed - verified)
        shares = self._shares
        self._shares = Seconds(
            0.0,
            shares.draft + step.draft / num_rows,
            shares.verify + step.verify / num_rows,
            shares.other + step.other / num_rows,
        )
        if self._on_step is not None:
            self._on_step(step)

    def _now(self) -> float:
        if self._waits:
            torch.cuda.synchronize(self._target.device)
        return time.perf_counter()

    def _check_token(self, token: int, row: _Row) -> None:
        if not 0 <= token < self._target.spec.vocab_size:
            raise UnsupportedTarget(
                "The target's logits are NaN.",
                where=f"request {row.request.id}, position {row.position + 1}",
                remedy="Check the target's weights and dtype.",
            )

    def _check_draft(self, accepted: int, row: _Row) -> None:
        if accepted < 0:
            raise IncompatibleDraft(
                "The draft's probabilities are NaN, or a drafted token has none.",
                where=f"request {row.request.id}, position {row.position}",
                remedy="Check that all of its weights were loaded.",
            )


def _check_fit(target: Target, drafter: Drafter) -> None:
    if tuple(drafter.layer_ids) != tuple(target.layer_ids):
        raise IncompatibleDraft(
            f"The draft reads layers {list(drafter.layer_ids)}, the target captures {list(target.layer_ids)}.",
            where="target_layer_ids",
            remedy="Load the target with the draft's layer ids.",
        )
    if drafter.vocab_size != target.spec.vocab_size:
        raise IncompatibleDraft(
            f"The draft's vocabulary has {drafter.vocab_size} tokens, the target's {target.spec.vocab_size}.",
            where="vocab_size",
            remedy="Use a draft that was trained for this target.",
        )


def _next_group(
    cache_rows: Sequence[_Row | None], queue: deque[tuple[int, int]], requests: Sequence[Request]
) -> tuple[int, list[_Row]]:
    """Take requests from the queue for the first run of free cache rows: those that can share a prefill."""
    first = cache_rows.index(None)
    group: list[_Row] = []
    longest = total = 0
    while queue and first + len(group) < len(cache_rows) and cache_rows[first + len(group)] is None:
        index, limit = queue[0]
        length = len(requests[index].prompt_ids)
        padded = max(longest, length) * (len(group) + 1)
        if group and (padded > PREFILL_TOKENS or padded - total - length > PREFILL_PADDING * padded):
            break
        queue.popleft()
        group.append(_Row(requests[index], limit, lane=first + len(group)))
        longest, total = max(longest, length), total + length
    return first, group
