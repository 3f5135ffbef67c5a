"""Training a draft on target states, captured before or live: the `Objective` of the `train` stage.

Knows no algorithm: everything particular comes from the `Algorithm` that the job names. With captured states the target
itself is loaded only to validate: its embedding and head are read straight from its files.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.config import Section
from deepspec.drafts import ALGORITHMS
from deepspec.errors import DataError, IncompatibleDraft
from deepspec.states import config as states_config
from deepspec.targets.directory import read_spec
from deepspec.targets.family import TargetSpec
from deepspec.training.config import Config, TrainingExecution
from deepspec.training.job import TrainJob

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.algorithm import Supervision
    from deepspec.drafts.layers import DraftModule
    from deepspec.states.batch import PackedStates, PackedTokens, StateSource
    from deepspec.targets.model import Target
    from deepspec.training.objective import Placement

logger = logging.getLogger(__name__)

_UNITS = {
    "tau_probabilistic": "tokens/round",
    "validation_loss": "nats",
    "validation_tau_probabilistic": "tokens/round",
    "tau_gap": "tokens/round",
}
_VALIDATION_ROWS = 16


class DraftJobConfig(Section):
    """What `objective` reads from a job's `config`.

    Attributes:
        algorithm: a name in ALGORITHMS.
        draft: that algorithm's Config.
        states: where the training split's states are (see `StateReader`); None: they are captured live.
        disk: folder that keeps what of them comes from object storage; None: nothing is kept.
        live: what files of them would be like; decides the order of the documents.
        tokens: tokens file of the training split; read where states are captured live.
        validation: tokens file of the validation split.
        target: the target's directory.
        target_dtype: what the target computes in.
        init: directory of the draft to start from; None: new weights.
    """

    algorithm: str
    draft: dict[str, Any]
    states: str | None
    disk: Path | None = None
    live: states_config.Config
    tokens: Path
    validation: Path
    target: Path
    target_dtype: str
    init: Path | None = None


def draft_job(
    draft: Section,
    train: Config,
    execution: TrainingExecution,
    *,
    states: str | Path | None,
    tokens: Path,
    target: Path,
    target_dtype: str,
    out: Path,
    identity: str,
    init: Path | None = None,
    disk: Path | None = None,
    live: states_config.Config = states_config.Config(),  # noqa: B008  # frozen
) -> TrainJob:
    """The job that trains a draft.

    Args:
        draft: the recipe's draft section: the Config of one of ALGORITHMS.
        train, execution: see there.
        states: where the training split's states are: a folder from `write_states`, or the URL of their manifest; None:
            the target is run in the training loop.
        tokens: folder with `train.parquet` and `validation.parquet` from `write_tokens`.
        target: the target's directory.
        target_dtype: what the target computes in, as when the states were captured.
        out: the draft is written to this directory.
        identity: key of the result.
        init: directory of a draft of the same form, to start from its weights.
        disk: folder that may keep states that come from object storage (`run.states_disk_bytes`).
        live: without `states`: sizes of the files that there would be; the order of the documents depends on them.
    """
    config = DraftJobConfig(
        algorithm=str(draft.model_dump()["algorithm"]),
        draft=draft.model_dump(mode="json"),
        states=str(states.absolute() if isinstance(states, Path) else states) if states else None,
        disk=disk.absolute() if disk else None,
        live=live,
        tokens=(tokens / "train.parquet").absolute(),
        validation=(tokens / "validation.parquet").absolute(),
        target=target.absolute(),
        target_dtype=target_dtype,
        init=init.absolute() if init else None,
    )
    return TrainJob(
        objective=f"{__name__}:objective",
        config=config.model_dump(mode="json"),
        train=train,
        execution=execution,
        out=out,
        identity=identity,
    )


def objective(job: TrainJob, placement: "Placement") -> "DraftObjective":
    """The objective of a job that `draft_job` made; called in the training process."""
    return DraftObjective(DraftJobConfig.model_validate(job.config), job.train, job.execution, placement)


@dataclass(frozen=True)
class MicroBatch:
    """Some documents of a step, and what they teach; both on the CPU until their loss is computed.

    Args:
        tokens: the documents.
        supervision: the algorithm's.
    """

    tokens: "PackedTokens"
    supervision: "Supervision"


class DraftObjective:
    """See `Objective`.

    Raises:
        IncompatibleDraft: the states have other layers or another hidden size than the draft reads, or the draft to
            start from is of another form.
        DataError: validations are asked for and there is no prompt for them.
    """

    def __init__(
        self, config: DraftJobConfig, train: Config, execution: TrainingExecution, placement: "Placement"
    ) -> None:
        import torch

        from deepspec.drafts import initialization
        from deepspec.drafts.layers import Computation

        self._config = config
        self._train = train
        self._budget_tokens = execution.micro_batch_tokens
        self._disk_bytes = execution.states_disk_bytes
        self._placement = placement
        self._algorithm = ALGORITHMS[config.algorithm]
        self.units: Mapping[str, str] = {**_UNITS, **self._algorithm.units}
        self.memory_fields = tuple(f"draft.{name}" for name in self._algorithm.memory_fields)
        self._draft_config = self._algorithm.Config.model_validate(config.draft)
        self._spec = read_spec(config.target)
        self._layer_ids = self._algorithm.layer_ids(self._draft_config, self._spec)
        self._loaded: Target | None = None
        with torch.device(placement.device):
            self.module: DraftModule = self._algorithm.build(self._draft_config, self._spec)
        self.module.compute_as(
            Computation(execution.attention, compiled=execution.compile, recomputed=execution.recompute_activations)
        )
        self._reader = self._source()
        self._order = self._reader.order(train.seed)
        self.num_steps = train.num_steps or max(
            1, train.num_epochs * self._reader.num_documents // train.num_documents_per_step
        )
        every = train.validate_every_steps
        self._prompts = _prompts(config.validation, train, self._spec) if every and every < self.num_steps else []
        self._held_out: Sequence[tuple[PackedStates, Supervision]] = ()
        tables = self._tables()
        self._algorithm.initialize(self.module, *tables, train.seed)
        initialization.share_tables(self.module, *tables)
        if config.init is not None:
            self._start_from(config.init)

    def _start_from(self, directory: Path) -> None:
        """Take over a draft's trained weights; the frozen ones stay the target's own."""
        import torch

        start = self._algorithm.load(directory, self._spec, config=self._draft_config).state_dict()
        with torch.no_grad():
            for name, weight in self.module.named_parameters():
                if weight.requires_grad:
                    weight.copy_(start[name])
        logger.info("Started from the weights of %s.", directory)

    def _tables(self) -> "tuple[Tensor, Tensor]":
        """The target's embedding and head in the dtype the draft computes in, as the target rounds them."""
        import torch

        from deepspec.targets.weights import Weights, read_tables

        if self._loaded is not None:
            embedding_VD, head_VD = self._loaded.embedding_weight, self._loaded.head_weight
        else:
            embedding_VD, head_VD = read_tables(
                Weights(self._config.target),
                self._spec,
                dtype=getattr(torch, self._config.target_dtype),
                device=self._placement.device,
            )
        embedding = embedding_VD.to(self._placement.dtype)
        return embedding, embedding if head_VD is embedding_VD else head_VD.to(self._placement.dtype)

    def _source(self) -> "StateSource":
        """Where the states come from."""
        from deepspec.states.live import LiveStates
        from deepspec.states.reader import StateReader
        from deepspec.store.reading.piece_cache import PieceCache

        if self._config.states is None:
            return LiveStates(self._config.tokens, self._target(), self._config.live, batch_tokens=self._budget_tokens)
        disk = PieceCache(self._config.disk, self._disk_bytes) if self._config.disk else None
        reader = StateReader(self._config.states, disk=disk)
        _check_states(reader, self._layer_ids, self._spec)
        return reader

    def _target(self) -> "Target":
        """The target, loaded when it is first needed; the draft then shares its tables."""
        from deepspec.drafts import initialization
        from deepspec.targets.model import Target

        if self._loaded is None:
            self._loaded = Target.load(
                self._config.target,
                device=str(self._placement.device),
                dtype=self._config.target_dtype,
                layer_ids=self._layer_ids,
            )
            initialization.share_tables(self.module, *self._tables())
        return self._loaded

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        own, next_own = self._dealt(step), self._dealt(step + 1)
        self._reader.read_ahead([document for batch in (*own, *next_own) for document in batch])
        return [self._micro_batch(documents, step) for documents in own]

    def _dealt(self, step: int) -> list[list[int]]:
        """The documents of this process's micro-batches of a step."""
        from deepspec.states.order import pack

        size = self._train.num_documents_per_step
        documents = self._order.documents(step * size, (step + 1) * size).tolist()
        lengths = [int(self._reader.num_tokens_of[document]) for document in documents]
        # Packed before they are dealt: what is packed together does not depend on how many processes there are.
        ranges = pack(lengths, self._budget_tokens)[self._placement.rank :: self._placement.world_size]
        return [documents[packed.start : packed.stop] for packed in ranges]

    def _micro_batch(self, documents: list[int], step: int) -> MicroBatch:
        tokens = self._reader.tokens(documents)
        supervision = self._algorithm.supervise(tokens, self._draft_config, seed=self._train.seed, step=step)
        return MicroBatch(tokens, supervision)

    def dummy_micro_batch(self, step: int) -> MicroBatch:
        size = self._train.num_documents_per_step
        documents = self._order.documents(step * size, (step + 1) * size).tolist()
        return self._micro_batch([min(documents, key=lambda document: int(self._reader.num_tokens_of[document]))], step)

    @property
    def parts(self) -> Sequence[str]:
        return self.module.parts

    def num_tokens(self, micro_batch: MicroBatch) -> int:
        return micro_batch.tokens.num_tokens

    def totals(self, micro_batch: MicroBatch) -> Mapping[str, float]:
        return micro_batch.supervision.totals

    def loss(
        self, module: "nn.Module", micro_batch: MicroBatch, totals: Mapping[str, float]
    ) -> "tuple[Tensor, Mapping[str, Tensor]]":
        device = self._placement.device
        batch = self._reader.with_states(micro_batch.tokens).to(device, self._placement.dtype)
        output = self._algorithm.loss(module, batch, micro_batch.supervision.to(device), totals)
        return output.loss, output.sums

    def validate(self, step: int) -> dict[str, float]:
        """Acceptance length by decoding the validation prompts, and loss on their documents.

        Returns:
            `tau`: pooled over rounds, bonus included, the τ of the evaluation, which lies above training. Of the same
            documents, `validation_loss` and `validation_tau_probabilistic`: what a training that looks at its loss
            alone would go by; and `tau_gap`, how far that promises more than decoding keeps.
        """
        from deepspec.decoding.config import Sampling
        from deepspec.decoding.engine import Engine

        drafter = self._algorithm.drafter(self.module, self._draft_config)
        sampling = Sampling(temperature=self._train.validation_temperature)
        engine = Engine(self._target(), drafter, rows=_VALIDATION_ROWS, sampling=sampling)
        rounds = [one for completion in engine.run(self._prompts) for one in completion.rounds]
        if not rounds:
            raise DataError(
                "no validation answer took a single round.",
                where=str(self._config.validation),
                remedy="Validate on longer answers: raise data.min_supervised_tokens.",
            )
        logger.info("Validated after step %d: %d rounds.", step, len(rounds))
        tau = sum(one.committed for one in rounds) / len(rounds)
        loss, proxy = self._held_out_loss()
        return {
            "tau": tau,
            "validation_loss": loss,
            "validation_tau_probabilistic": proxy,
            "tau_gap": proxy - tau,
        }

    def _held_out_loss(self) -> tuple[float, float]:
        """Loss and expected acceptance length on the validation split's documents, the same blocks every time."""
        import torch

        if not self._held_out:
            self._held_out = self._held_out_batches()
        totals: dict[str, float] = {}
        for _, supervision in self._held_out:
            for term, total in supervision.totals.items():
                totals[term] = totals.get(term, 0.0) + total
        device = self._placement.device
        loss, tau, chains = 0.0, 0.0, 0.0
        with torch.no_grad():
            for batch, supervision in self._held_out:
                on_device = batch.to(device, self._placement.dtype)
                output = self._algorithm.loss(self.module, on_device, supervision.to(device), totals)
                loss += float(output.loss)
                value, count = output.sums["tau_probabilistic"].tolist()
                tau, chains = tau + value, chains + count
        return loss, tau / chains if chains else 1.0

    def _held_out_batches(self) -> "Sequence[tuple[PackedStates, Supervision]]":
        from deepspec.states.live import LiveStates
        from deepspec.states.order import pack

        source = LiveStates(
            self._config.validation, self._target(), self._config.live, batch_tokens=self._budget_tokens
        )
        count = min(source.num_documents, self._train.num_validation_prompts)
        batches = []
        for documents in pack(source.num_tokens_of[:count].tolist(), self._budget_tokens):
            tokens = source.tokens(list(documents))
            supervision = self._algorithm.supervise(tokens, self._draft_config, seed=self._train.seed, step=0)
            # Kept for the whole training: not where memory is dear.
            batches.append((source.with_states(tokens).to("cpu"), supervision))
        return batches

    def export(self, out: Path) -> dict[str, Any]:
        self._algorithm.save(self.module, out, self._draft_config, self._spec)
        trained = sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)
        return {"documents": self._reader.num_documents, "trained_parameters": trained}


def _check_states(reader: "StateSource", layer_ids: tuple[int, ...], spec: TargetSpec) -> None:
    if reader.layer_ids != layer_ids:
        raise IncompatibleDraft(
            f"the states hold layers {list(reader.layer_ids)}, the draft reads {list(layer_ids)}.",
            where="draft.target_layer_ids",
            remedy="Capture the states again for this draft.",
        )
    if reader.hidden_size != spec.hidden_size:
        raise IncompatibleDraft(
            f"the states have {reader.hidden_size} numbers each, the target's hidden size is {spec.hidden_size}.",
            where="hidden_size",
            remedy="Capture the states again from this target.",
        )


def _prompts(tokens_file: Path, train: Config, spec: TargetSpec) -> list[Any]:
    """Requests for the first prompts of a tokens file: rows lie in the order of hashes, so the first are random."""
    from itertools import islice

    from deepspec.data.responses.requests import GenerationRequest
    from deepspec.data.tables import read_table

    rows = islice(read_table(tokens_file, ["input_ids", "num_prompt_tokens"]), train.num_validation_prompts)
    requests = [
        GenerationRequest(
            id=str(index),
            prompt_ids=tuple(row["input_ids"][: row["num_prompt_tokens"]]),
            max_new_tokens=train.validation_max_new_tokens,
            seed=index,
        )
        for index, row in enumerate(rows)
        if 0 < row["num_prompt_tokens"] < spec.max_position_embeddings
    ]
    if not requests:
        raise DataError(
            "there is no prompt to validate with.",
            where=str(tokens_file),
            remedy="Raise data.splits.validation, or set train.validate_every_steps to null.",
        )
    return requests
