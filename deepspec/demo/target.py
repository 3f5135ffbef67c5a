"""The demo's target: a small Qwen3-architecture model, trained on the corpus by the library's own loop.

`write_target` starts the training in a process of its own and leaves a Hugging Face directory; `objective` is what that
process asks for. Next-token loss over whole conversations; prompts count less, but they teach the words.

Not here: the model (network.py) and the loop (deepspec.training).

Shapes: B rows, T tokens of a row, N positions that predict, D hidden, V vocabulary.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.demo.config import Config
from deepspec.demo.corpus import HELD_OUT, TARGET_TRAINING, read_conversations
from deepspec.demo.draws import KeyedDraws
from deepspec.demo.tokenizer import (
    END_OF_TEXT,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    TURN_END,
    answer_text,
    prompt_text,
)
from deepspec.errors import DataError
from deepspec.progress import SILENT, MetricSink, Progress
from deepspec.targets import FAMILIES
from deepspec.targets.family import TargetSpec, spec_from_config
from deepspec.training.config import TrainingExecution
from deepspec.training.job import TrainJob
from deepspec.training.processes.launch import launch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deepspec.training.objective import Placement

_WINDOW_BATCHES = 16
_VALIDATION_ROWS = 32


@dataclass(frozen=True)
class Row:
    """One conversation as tokens."""

    kind: str
    input_ids: tuple[int, ...]
    num_prompt_tokens: int


@dataclass(frozen=True)
class Rows:
    """A padded micro-batch, by the rows' numbers."""

    numbers: tuple[int, ...]


def write_target(
    config: Config,
    corpus_dir: Path,
    tokenizer_dir: Path,
    out: Path,
    work_dir: Path,
    execution: TrainingExecution,
    metrics: MetricSink,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train the target and write it to the directory `out`, ready for `Target.load`.

    Args:
        config: its `target` and `train` sections are read.
        corpus_dir: from `write_corpus`.
        tokenizer_dir: from `write_tokenizer`; its files are copied.
        out: created.
        work_dir: checkpoints, metrics and log of the training.
        execution: how it is run.
        metrics: receives the training's numbers.
        progress: advances by optimizer steps.

    Returns:
        What `launch` returns, and `held_out`: for every kind of conversation the target's `loss` on held-out answers
        and the mean `entropy` of its next-token distribution there, both in nats per token, over `tokens`.

    Raises:
        DataError: corpus or tokenizer are not there or damaged.
        LaunchError: see `launch`.
    """
    encode_rows(corpus_dir / HELD_OUT, tokenizer_dir)  # here, a damaged input is one clear sentence
    job = TrainJob(
        objective="deepspec.demo.target:objective",
        config={
            # Its own sections: what the corpus is made from is no part of this.
            "demo": {name: getattr(config, name).model_dump(mode="json") for name in ("target", "train")},
            "corpus": str(corpus_dir.absolute()),
            "tokenizer": str(tokenizer_dir.absolute()),
        },
        train=config.train,
        execution=execution,
        out=out,
    )
    return launch(job, work_dir=work_dir, metrics=metrics, progress=progress)


def objective(job: TrainJob, placement: "Placement") -> "TargetObjective":
    """The objective of a job that `write_target` made."""
    return TargetObjective(
        Config.model_validate(job.config["demo"]),
        Path(job.config["corpus"]),
        Path(job.config["tokenizer"]),
        placement,
        micro_batch_tokens=job.execution.micro_batch_tokens,
    )


def encode_rows(file: Path, tokenizer_dir: Path) -> list[Row]:
    """The conversations of a corpus file as the chat template writes them, up to the end of the answer.

    Raises:
        DataError: file or tokenizer are not there or damaged.
    """
    tokenizer = _tokenizer(tokenizer_dir)
    conversations = read_conversations(file)
    prompts = tokenizer.encode_batch([prompt_text(row.prompt) for row in conversations])
    answers = tokenizer.encode_batch([answer_text(row.answer) for row in conversations])
    return [
        Row(row.kind, (*prompt.ids, *answer.ids), len(prompt.ids))
        for row, prompt, answer in zip(conversations, prompts, answers, strict=True)
    ]


def data_order(lengths: Sequence[int], *, seed: int, epoch: int, batch: int) -> list[tuple[int, ...]]:
    """Batches of rows of similar length: a pure function of its arguments.

    Rows are permuted, sorted by length within windows of some batches, cut into batches, and the batches of all windows
    permuted again.

    Args:
        lengths: of all rows, in tokens.
        seed, epoch: of the permutations.
        batch: rows in a batch; the last one may be smaller.

    Returns:
        Every row's number once.
    """
    draws = KeyedDraws("target data order", seed, epoch)
    order = draws.permutation(len(lengths))
    window = batch * _WINDOW_BATCHES
    batches = []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda row: lengths[row])
        batches += [tuple(rows[first : first + batch]) for first in range(0, len(rows), batch)]
    return [batches[place] for place in draws.permutation(len(batches))]


class TargetObjective:
    """Next-token prediction over the corpus; see `deepspec.training.objective.Objective`."""

    units: Mapping[str, str] = {"answer_loss": "nats"}
    memory_fields = ()
    parts: Sequence[str] = ()

    def __init__(
        self, config: Config, corpus_dir: Path, tokenizer_dir: Path, placement: "Placement", *, micro_batch_tokens: int
    ) -> None:
        from deepspec.demo.network import Network

        self._config = config
        self._tokenizer_dir = tokenizer_dir
        self._placement = placement
        self._micro_batch_tokens = micro_batch_tokens
        self._rows = encode_rows(corpus_dir / TARGET_TRAINING, tokenizer_dir)
        self._held_out = encode_rows(corpus_dir / HELD_OUT, tokenizer_dir)
        self._lengths = [len(row.input_ids) for row in self._rows]
        self._description = describe(config, _tokenizer(tokenizer_dir))
        self._check_lengths()
        spec = spec_of(self._description)
        self._network = Network(spec, config.train.seed).to(placement.device)
        self._order = lru_cache(maxsize=2)(self._epoch)

    @property
    def module(self) -> "nn.Module":
        """The network."""
        return self._network

    @property
    def num_steps(self) -> int:
        """As configured, else all epochs."""
        train = self._config.train
        return train.num_steps or train.num_epochs * self._steps_per_epoch

    def micro_batches(self, step: int) -> Sequence[Rows]:
        """This rank's rows of the step, in parts of at most `micro_batch_tokens`."""
        epoch, place = divmod(step, self._steps_per_epoch)
        rows = self._order(epoch)[place][self._placement.rank :: self._placement.world_size]
        parts: list[list[int]] = []
        for row in rows:  # by rising length: the newest row is the longest
            if not parts or (len(parts[-1]) + 1) * self._lengths[row] > self._micro_batch_tokens:
                parts.append([])
            parts[-1].append(row)
        return [Rows(tuple(part)) for part in parts]

    def dummy_micro_batch(self, step: int) -> Rows:
        """The shortest row of the step."""
        epoch, place = divmod(step, self._steps_per_epoch)
        return Rows((min(self._order(epoch)[place], key=lambda row: self._lengths[row]),))

    def num_tokens(self, micro_batch: Rows) -> int:
        """Tokens without padding."""
        return sum(self._lengths[row] for row in micro_batch.numbers)

    def totals(self, micro_batch: Rows) -> Mapping[str, float]:
        """The weights of all predicted tokens: 1 in answers, less in prompts."""
        rows = [self._rows[number] for number in micro_batch.numbers]
        num_answer_tokens = sum(len(row.input_ids) - row.num_prompt_tokens for row in rows)
        num_predicted_in_prompts = sum(row.num_prompt_tokens - 1 for row in rows)  # nothing predicts a row's first
        return {"weight": num_answer_tokens + self._config.target.prompt_loss_weight * num_predicted_in_prompts}

    def loss(
        self, module: "nn.Module", micro_batch: Rows, totals: Mapping[str, float]
    ) -> "tuple[Tensor, Mapping[str, Tensor]]":
        """Weighted cross-entropy of the next tokens, and that of the answers alone, in nats."""
        import torch
        import torch.nn.functional as F

        predicted = self._predict(module, [self._rows[number] for number in micro_batch.numbers])
        losses_N = F.cross_entropy(predicted.logits_NV, predicted.labels_N, reduction="none")
        weights_N = torch.where(predicted.answer_N, 1.0, self._config.target.prompt_loss_weight)
        answers_A = losses_N.detach()[predicted.answers_A]
        loss = (weights_N * losses_N).sum() / totals["weight"]
        pair = (answers_A.sum(), torch.full_like(losses_N[0], len(answers_A)))
        return loss, {"answer_loss": torch.stack(pair).detach().double()}

    def validate(self, step: int) -> Mapping[str, float]:
        """Loss and entropy on held-out answers, all kinds together."""
        del step
        total = {"loss": 0.0, "entropy": 0.0, "tokens": 0.0}
        for numbers in self.held_out().values():
            total["tokens"] += numbers["tokens"]
            for name in ("loss", "entropy"):
                total[name] += numbers[name] * numbers["tokens"]
        return {f"held_out_{name}": total[name] / total["tokens"] for name in ("loss", "entropy")}

    def held_out(self) -> dict[str, dict[str, float]]:
        """For each kind, over the tokens of held-out answers: loss and mean entropy, in nats per token."""
        import torch

        results: dict[str, dict[str, float]] = {}
        for kind in dict.fromkeys(row.kind for row in self._held_out):
            rows = sorted((row for row in self._held_out if row.kind == kind), key=lambda row: len(row.input_ids))
            sums = {"loss": 0.0, "entropy": 0.0, "tokens": 0.0}
            for start in range(0, len(rows), _VALIDATION_ROWS):
                with torch.inference_mode():
                    predicted = self._predict(self._network, rows[start : start + _VALIDATION_ROWS])
                    log_NV = predicted.logits_NV[predicted.answer_N].log_softmax(-1)
                    labels_N1 = predicted.labels_N[predicted.answer_N][:, None]
                    sums["loss"] -= float(log_NV.gather(1, labels_N1).sum())
                    sums["entropy"] -= float((log_NV.exp() * log_NV).sum())
                    sums["tokens"] += len(log_NV)
            results[kind] = {
                "loss": sums["loss"] / sums["tokens"],
                "entropy": sums["entropy"] / sums["tokens"],
                "tokens": sums["tokens"],
            }
        return results

    def export(self, out: Path) -> Mapping[str, Any]:
        """Write a Hugging Face directory: weights, configurations and tokenizer."""
        from safetensors.torch import save_file

        parameters = self._network.named_parameters()
        tensors = {name: weight.detach().float().cpu().contiguous() for name, weight in parameters}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        _write_json(out / "config.json", self._description)
        ends = {"eos_token_id": self._description["eos_token_id"], "pad_token_id": self._description["pad_token_id"]}
        _write_json(out / "generation_config.json", {**ends, "do_sample": True, "temperature": 1.0})
        for name in TOKENIZER_FILES:
            shutil.copyfile(self._tokenizer_dir / name, out / name)
        num_parameters = sum(weight.numel() for weight in tensors.values())
        return {"held_out": self.held_out(), "num_parameters": num_parameters}

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self._rows) / self._config.train.num_documents_per_step)

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        train = self._config.train
        return data_order(self._lengths, seed=train.seed, epoch=epoch, batch=train.num_documents_per_step)

    def _predict(self, module: "nn.Module", rows: Sequence[Row]) -> "Prediction":
        import torch

        device = self._placement.device
        longest = max(len(row.input_ids) for row in rows)
        # Padding is on the right, where a causal model never looks back from.
        ids_BT = torch.tensor([(*row.input_ids, *(0,) * (longest - len(row.input_ids))) for row in rows])
        lengths_B = torch.tensor([len(row.input_ids) for row in rows])
        prompts_B = torch.tensor([row.num_prompt_tokens for row in rows])
        label_places_T = torch.arange(1, longest)
        wanted = label_places_T < lengths_B[:, None]
        answer = label_places_T >= prompts_B[:, None]
        # Chosen here and not on the device, which would be waited for to learn how many they are.
        row_N, place_N = wanted.nonzero(as_tuple=True)
        answer_N = answer[wanted]
        labels_N, answers_A = ids_BT[:, 1:][wanted], answer_N.nonzero().squeeze(1)
        ids_BT, row_N, place_N, labels_N, answer_N, answers_A = (
            x.to(device, non_blocking=True) for x in (ids_BT, row_N, place_N, labels_N, answer_N, answers_A)
        )
        logits_NV = module.get_submodule("lm_head")(module(ids_BT)[row_N, place_N]).float()
        return Prediction(logits_NV, labels_N, answer_N, answers_A)

    def _check_lengths(self) -> None:
        longest = max(*self._lengths, *(len(row.input_ids) for row in self._held_out))
        room = self._config.target.max_position_embeddings
        if longest > room:
            raise DataError(
                f"a conversation has {longest} tokens, more than the target's {room} positions.",
                where="target.max_position_embeddings",
                remedy="Raise it, or raise tokenizer.vocab_size.",
            )


@dataclass(frozen=True)
class Prediction:
    """A forward's result at the positions that predict a token.

    Args:
        logits_NV: fp32.
        labels_N: what comes next.
        answer_N: whether that belongs to the answer.
        answers_A: which of the N do.
    """

    logits_NV: "torch.Tensor"
    labels_N: "torch.Tensor"
    answer_N: "torch.Tensor"
    answers_A: "torch.Tensor"


def describe(config: Config, tokenizer: Any) -> dict[str, Any]:
    """The target's config.json."""
    shape = config.target.model_dump(mode="json", exclude={"prompt_loss_weight"})
    rope_theta = shape.pop("rope_theta")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": tokenizer.get_vocab_size(),
        **shape,
        "layer_types": ["full_attention"] * config.target.num_hidden_layers,
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
    }


def spec_of(description: Mapping[str, Any]) -> TargetSpec:
    """The spec of a target with that config.json."""
    family = FAMILIES[description["model_type"]]
    return spec_from_config(family, description, path=Path("demo-target"), model_type=description["model_type"])


def _tokenizer(tokenizer_dir: Path) -> Any:
    from tokenizers import Tokenizer

    file = tokenizer_dir / TOKENIZER_FILE
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}.", where=str(file), remedy="Make the tokenizer again.") from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
