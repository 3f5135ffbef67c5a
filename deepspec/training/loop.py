"""The training loop: optimizer steps from an `Objective`, restartable to the bit.

One step: the totals of all its micro-batches (over all processes) first; then each micro-batch's loss, already divided
by them, forward and backward; gradients add up, are clipped, and AdamW changes the weights. So neither the loss nor the
gradient depends on how a batch was split. There is no random state: draws are keyed by (seed, step, document).

Sums stay on the device: they are read back once a step, together with the gradient's norm, so that the device is never
waited for between micro-batches.

Several processes share a step's micro-batches, and either hold all weights each (data parallel: gradients are added up
after the last backward) or divide them (fully sharded).

The loop knows nothing of models, files of states, or trackers; see `objective.py` for what it asks.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from deepspec.progress import SILENT, Progress
from deepspec.training import parallel
from deepspec.training.checkpoint import Checkpoints, TrainingState, unsaved
from deepspec.training.config import Config
from deepspec.training.failure import OutOfMemory, TrainingDiverged
from deepspec.training.memory.peak import Memory
from deepspec.training.metric_stream import MetricLog
from deepspec.training.objective import CHOSEN_BY, Objective
from deepspec.training.optimizer import AdamW, MasterWeights, TrainedWeights, clip
from deepspec.training.schedule import learning_rate

logger = logging.getLogger(__name__)

_TOKENS, _LOSS = " tokens", " loss"
"""Names in addition to those of an objective's totals and metrics."""
_UNITS = {"loss": "nats", "lr": "1/step", "grad_norm": "1", "tokens_per_second": "tokens/s", CHOSEN_BY: "tokens/round"}


@dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended.

    Args:
        finished: the training is complete and the module holds the chosen weights; else it was asked to stop, and
            saved.
        state: where it is.
        resumed_step: the step it was resumed at (0: from the start).
        chosen_step: the step whose weights the module holds now.
        num_tokens: tokens trained on in this call.
        memory: of this process, see `Memory.found`; empty where it was not watched.
    """

    finished: bool
    state: TrainingState
    resumed_step: int
    chosen_step: int
    num_tokens: int
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sharding:
    """Weights are divided among processes.

    Args:
        num_shards: how many hold one copy together; None: all.
    """

    num_shards: int | None = None


def fit(
    objective: Objective,
    config: Config,
    *,
    checkpoints: Checkpoints,
    metrics: MetricLog,
    checkpoint_every_steps: int = 200,
    sharding: Sharding | None = None,
    watch_memory: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
    started: Callable[[int], None] = lambda _step: None,
) -> Outcome:
    """Train `objective` to its end, or until `stop` says so, from the newest checkpoint on.

    Args:
        objective: what is trained; its module's parameters are cast to `config.compute_dtype`.
        config: optimizer, schedule, choice of the best weights.
        checkpoints: where to resume from and save to.
        metrics: cut back to the resumed checkpoint, then one line per number. A metric's step is the number of
            optimizer steps done.
        checkpoint_every_steps: see `TrainingExecution`.
        sharding: how several processes divide the weights; None: each has all of them.
        watch_memory: find out what the largest steps take; see `Memory`.
        stop: asked before every step; true on any process stops all of them, after saving.
        progress: advances by optimizer steps, those done before a resume included.
        started: called with the step that training resumes at, once earlier metrics have been cut back.

    Raises:
        TrainingDiverged: a loss or gradient that is not finite; the last checkpoint stays as it is.
        OutOfMemory: the device has no room for a step.
        StoreFull: there is no room for a checkpoint.
        RecipeError: the processes cannot be divided as `sharding` says.
    """
    run = _Fit(objective, config, checkpoints, metrics, sharding, watch_memory=watch_memory)
    resumed_step = run.resume()
    started(resumed_step)
    progress.start(objective.num_steps, "steps")
    progress.advance(resumed_step)
    while not run.is_over():
        if parallel.any_of(stop()):
            run.save()
            checkpoints.wait()
            return run.outcome(resumed_step, finished=False)
        run.advance()
        progress.advance()
        checkpoints.look()
        if run.validate_if_due() or run.state.step % checkpoint_every_steps == 0:
            run.save()
    if objective.num_steps > checkpoint_every_steps:
        run.save()  # a long training must not lose its last steps if writing the result fails
    run.load_best()
    return run.outcome(resumed_step, finished=True)


class _Fit:
    """The state of one call of `fit`."""

    def __init__(
        self,
        objective: Objective,
        config: Config,
        checkpoints: Checkpoints,
        metrics: MetricLog,
        sharding: Sharding | None,
        *,
        watch_memory: bool,
    ) -> None:
        self._objective = objective
        self._config = config
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._units = {**_UNITS, **objective.units}
        self._trained = _place(objective, getattr(torch, config.compute_dtype), sharding)
        self._optimizer = AdamW(
            self._trained.weights, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        self._memory: Memory | None = None
        if watch_memory:
            moments = (self._optimizer.first_moments, self._optimizer.second_moments)
            trained = (self._trained.weights, self._trained.gradients, *moments)
            own = [tensor for tensors in trained for tensor in tensors.values()]
            module = objective.module
            self._memory = Memory([*own, *module.parameters(), *module.buffers()])
        self._device = next(objective.module.parameters()).device
        self._counts, self._sums = parallel.NamedSums(), parallel.NamedSums()
        self._saved: TrainingState | None = None
        self._num_tokens = 0
        self._chosen_step = 0
        self.state = TrainingState()

    def resume(self) -> int:
        """Go back to the newest checkpoint; returns its step (0: none)."""
        state = self._checkpoints.resume(self._tensors())
        if state is not None:
            self._trained.copy_to_module()
            self._saved = self.state = state
            logger.info("Resumed at step %d of %d.", state.step, self._objective.num_steps)
        self._metrics.rewind(self.state.metrics_mark)
        return self.state.step

    def is_over(self) -> bool:
        """Whether all steps are done, or validations have not improved for long enough."""
        patience = self._config.patience_validations
        impatient = patience is not None and self.state.worse_validations >= patience
        return impatient or self.state.step >= self._objective.num_steps

    def advance(self) -> None:
        """Do one optimizer step."""
        start = time.perf_counter()
        step = self.state.step
        try:
            numbers, num_tokens = self._gradients(step)
            self._check_finite(step, numbers)
            clip(self._trained.gradients, numbers["grad_norm"], self._config.max_grad_norm)
            numbers["lr"] = learning_rate(
                step,
                num_steps=self._objective.num_steps,
                peak=self._config.lr,
                warmup_share=self._config.warmup_share,
            )
            self._optimizer.step(self._trained.gradients, number=step + 1, lr=numbers["lr"])
            self._trained.copy_to_module()
        except torch.OutOfMemoryError as error:
            fields = ", ".join(("run.micro_batch_tokens", *self._objective.memory_fields))
            raise OutOfMemory(
                f"no room for optimizer step {step + 1}: {error}",
                remedy=f"Lower {fields} or data.max_length_tokens, or set run.recompute_activations=true.",
            ) from error
        numbers["tokens_per_second"] = num_tokens / (time.perf_counter() - start)
        self._num_tokens += num_tokens
        self.state = replace(self.state, step=step + 1)
        self._record(numbers)

    def _gradients(self, step: int) -> tuple[dict[str, float], int]:
        """Loss, metrics and gradient norm of a step over all processes, and its tokens; leaves the gradients summed."""
        objective = self._objective
        micro_batches = objective.micro_batches(step)
        own = {_TOKENS: float(sum(objective.num_tokens(micro_batch) for micro_batch in micro_batches))}
        for micro_batch in micro_batches:
            for name, total in objective.totals(micro_batch).items():
                own[name] = own.get(name, 0.0) + total
        totals = self._counts.add(own)
        num_tokens = int(totals.pop(_TOKENS))
        self._trained.clear_gradients()
        num_missing = parallel.most(len(micro_batches)) - len(micro_batches) if self._trained.same_num_losses else 0
        sums: dict[str, torch.Tensor] = {}
        for micro_batch in micro_batches:
            with self._watching(micro_batch):
                loss, parts = objective.loss(self._trained.module, micro_batch, totals)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for name, pair in {_LOSS: loss.detach().double().expand(2), **parts}.items():
                sums[name] = sums[name] + pair if name in sums else pair
        self._keep_pace(step, num_missing, totals)
        return self._read_back(sums), num_tokens

    def _read_back(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """A step's loss, metrics and gradient norm over all processes: its one transfer from the device."""
        names, sums_M2 = self._sums.add_rows(sums, width=2, device=self._device)
        self._trained.collect_gradients()
        norm = self._trained.gradient_norm()
        *numbers, grad_norm = torch.cat((sums_M2.flatten(), norm.double()[None])).tolist()
        pairs = dict(zip(names, zip(numbers[::2], numbers[1::2], strict=True), strict=True))
        loss, _ = pairs.pop(_LOSS)
        means = {name: total / count for name, (total, count) in pairs.items() if count}
        return {"loss": loss, **means, "grad_norm": grad_norm}

    def _watching(self, micro_batch: Any) -> AbstractContextManager[Any]:
        if self._memory is None:
            return nullcontext()
        totals = self._objective.totals(micro_batch)
        return self._memory.watching({"tokens": self._objective.num_tokens(micro_batch), **totals})

    def _keep_pace(self, step: int, num_losses: int, totals: Mapping[str, float]) -> None:
        """Gather weights and add gradients as the processes with more micro-batches do, without effect."""
        without_effect = dict.fromkeys(totals, math.inf)
        for _ in range(num_losses):
            loss, _ = self._objective.loss(
                self._trained.module, self._objective.dummy_micro_batch(step), without_effect
            )
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def _check_finite(self, step: int, numbers: Mapping[str, float]) -> None:
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(numbers[name])]
        if not wrong:
            return
        self._checkpoints.wait()
        kept = self._saved.step if self._saved is not None else None
        raise TrainingDiverged(
            f"{wrong[0]} became {numbers[wrong[0]]} at optimizer step {step + 1}.",
            where=f"step {step + 1}",
            remedy=("The checkpoint of step " + str(kept) + " is kept. " if kept else "")
            + "Lower train.lr, or look at the data of that step.",
        )

    def validate_if_due(self) -> bool:
        """Validate if it is time; whether a new best was found, whose weights have to be saved."""
        every = self._config.validate_every_steps
        step = self.state.step
        last = step == self._objective.num_steps
        # The last weights are a candidate like any other; alone, they need no comparison.
        if every is None or not (step % every == 0 or (last and step > every)):
            return False
        self._trained.gather_full_weights()
        result = dict(parallel.from_first(self._objective.validate(step) if parallel.rank() == 0 else None))
        self._record(result)
        score = result.get(CHOSEN_BY)
        if score is None:
            return False
        best = self.state.best_score
        if best is None or score > best:
            self.state = replace(self.state, best_step=step, best_score=score, worse_validations=0)
            return True
        self.state = replace(self.state, worse_validations=self.state.worse_validations + 1)
        return False

    def save(self) -> None:
        """Start to publish a checkpoint, unless there is nothing new since the last one."""
        if unsaved(self.state, self._saved):
            self.state = replace(self.state, metrics_mark=self._metrics.mark())
            self._checkpoints.save(self.state, self._tensors())
            self._saved = self.state

    def load_best(self) -> None:
        """Make the module hold the best weights."""
        best = self.state.best_step
        self._chosen_step = self.state.step if best is None else best
        if self._chosen_step != self.state.step:
            self._checkpoints.load(self._chosen_step, self._tensors())
            self._trained.copy_to_module()
        self._trained.gather_full_weights()
        self._metrics.mark()
        self._checkpoints.wait()

    def outcome(self, resumed_step: int, *, finished: bool) -> Outcome:
        """What `fit` returns."""
        memory = {} if self._memory is None else self._memory.found()
        return Outcome(finished, self.state, resumed_step, self._chosen_step, self._num_tokens, memory)

    def _record(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._metrics(self.state.step, name, value, self._units.get(name, "1"))
        self._metrics.flush()

    def _tensors(self) -> dict[str, torch.Tensor]:
        parts = {
            "weight": self._trained.weights,
            "first_moment": self._optimizer.first_moments,
            "second_moment": self._optimizer.second_moments,
        }
        whole = {part: self._trained.for_checkpoint(tensors) for part, tensors in parts.items()}
        return {f"{part}.{name}": tensor for part, tensors in whole.items() for name, tensor in tensors.items()}


def _place(objective: Objective, dtype: torch.dtype, sharding: Sharding | None) -> TrainedWeights:
    """Where the weights lie: on every process all of them, or on each a part."""
    if sharding is None or parallel.is_alone():
        return MasterWeights(objective.module, dtype)
    # Imports torch's compiler, which other trainings need not wait for.
    from deepspec.training.sharded import ShardedWeights

    return ShardedWeights(objective.module, dtype, objective.parts, sharding.num_shards)
