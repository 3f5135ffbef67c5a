"""Bench "train-step": an optimizer step of a recipe's draft against the same step done straightforwardly.

Both sides train the same module on the same documents, with the same optimizer, in micro-batches of the same number of
tokens. Ours packs documents and takes the loss without logits; the reference is that of `straightforward`. Target and
states are random: what they hold changes no time. A target too large for this machine is shrunk: its widths, heads and
vocabulary are divided, layers and head size stay.

Shapes: T packed tokens, L captured layers, D hidden, V vocabulary.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deepspec.bench import measuring, straightforward
from deepspec.drafts import ALGORITHMS
from deepspec.drafts.algorithm import Algorithm
from deepspec.drafts.layers import Computation, DraftModule
from deepspec.planning.estimate import spec_of
from deepspec.planning.gpus import GPUS
from deepspec.recipe import load_recipe
from deepspec.states.batch import PackedStates, PackedTokens
from deepspec.states.order import pack
from deepspec.targets.family import TargetSpec
from deepspec.training.optimizer import AdamW, MasterWeights, clip

_PROMPT_SHARE = 0.25
_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """What is measured; see `add_arguments`."""

    recipe: str
    shrink: int
    documents: int
    length: int
    spread: float
    micro_batch_tokens: int
    num_anchors: int
    compile: bool
    recompute: bool
    dtype: str
    device: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    parser.add_argument("--recipe", default="dspark-qwen3-4b", help="whose draft, a name or a file (%(default)s)")
    parser.add_argument(
        "--shrink", type=measuring.positive, help="divides the target's widths, heads and vocabulary (8; 1 on a GPU)"
    )
    parser.add_argument("--documents", type=measuring.positive, default=8, help="documents of a step (%(default)s)")
    parser.add_argument("--length", type=measuring.positive, default=512, help="tokens of the longest (%(default)s)")
    parser.add_argument(
        "--spread", type=_share, default=0.75, help="share by which the shortest is shorter (%(default)s)"
    )
    parser.add_argument(
        "--micro-batch-tokens", type=measuring.positive, default=2048, help="tokens of a forward (%(default)s)"
    )
    parser.add_argument(
        "--num-anchors", type=measuring.positive, default=64, help="of a block draft, per document (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile our layers")
    parser.add_argument("--recompute", action="store_true", help="recompute our activations")
    parser.add_argument("--dtype", choices=tuple(measuring.DTYPES), help="of the forward (float32; bfloat16 on a GPU)")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1)")
    return value


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    device = options.device
    on_gpu = torch.device(device).type == "cuda"
    sizes = Sizes(
        recipe=options.recipe,
        shrink=options.shrink or (1 if on_gpu else 8),
        documents=options.documents,
        length=options.length,
        spread=options.spread,
        micro_batch_tokens=options.micro_batch_tokens,
        num_anchors=options.num_anchors,
        compile=options.compile,
        recompute=options.recompute,
        dtype=options.dtype or measuring.usual_dtype(device),
        device=device,
    )
    spec_of(load_recipe(sizes.recipe))  # here, a recipe that cannot be used is one clear sentence
    warm_up = replace(sizes, documents=1, length=16, num_anchors=2)
    peaks = measuring.median_peaks(prepare, sizes, warm_up, ("ours", "reference"), repeat=options.repeat, device=device)
    step = _Step(sizes)
    error, flops = step.error(), step.flops()
    seconds = measuring.alternate(
        {"ours": step.ours, "reference": step.reference}, repeat=options.repeat, device=device
    )
    compared = measuring.compared(seconds, peaks)
    for side in ("ours", "reference"):
        compared[side]["tokens_per_second"] = round(step.num_tokens / compared[side]["seconds"], 1)
    rates = [compared[side]["tokens_per_second"] for side in ("ours", "reference")]
    compared["ratio"]["tokens_per_second"] = measuring.ratio(*rates)
    kept = {name: value for name, value in asdict(sizes).items() if name != "device"}
    facts = {"tokens": step.num_tokens, "trained_parameters": step.num_trained}
    peak = _peak_flops(measuring.device_name(device))
    used = {} if peak is None else {"mfu": round(flops / compared["ours"]["seconds"] / peak, 4)}
    return {
        "bench": "train-step",
        "device": measuring.device_name(device),
        "sizes": {**kept, **facts, "threads": torch.get_num_threads(), "repeat": options.repeat},
        **compared,
        "flops": flops,
        **used,
        "max_rel_grad_error": error,
    }


def _peak_flops(name: str) -> float | None:
    """Dense bf16 rate of a device by its name; None: not known, or a CPU."""
    return next((gpu.flops for key, gpu in GPUS.items() if key in name.lower()), None)


def prepare(sizes: Sizes, side: str) -> measuring.Run:
    """One side's run, with a module of its own."""
    step = _Step(sizes)
    return step.ours if side == "ours" else step.reference


class _MicroBatch(NamedTuple):
    """Documents of a step: what they say on the CPU, where it is supervised, and with states on the device."""

    tokens: PackedTokens
    states: PackedStates

    @classmethod
    def of(cls, batch: PackedStates, device: str, dtype: torch.dtype) -> "_MicroBatch":
        return cls(batch, batch.to(device, dtype))


class _Step:
    """The draft, its optimizer, and the documents of one step."""

    def __init__(self, sizes: Sizes) -> None:
        recipe = load_recipe(sizes.recipe)
        spec = _shrunk(spec_of(recipe), sizes.shrink)
        self._algorithm: Algorithm = ALGORITHMS[recipe.draft.algorithm]
        wanted = {"mask_token_id": spec.vocab_size - 1, "num_anchors": sizes.num_anchors}
        known = {name: value for name, value in wanted.items() if name in type(recipe.draft).model_fields}
        self._config = recipe.draft.model_copy(update=known)
        self._computation = Computation(compiled=sizes.compile, recomputed=sizes.recompute)
        self._dtype = measuring.DTYPES[sizes.dtype]
        generator = torch.Generator().manual_seed(0)
        table_VD = torch.randn(spec.vocab_size, spec.hidden_size, generator=generator).mul_(spec.hidden_size**-0.5)
        with torch.device(sizes.device):
            self._draft: DraftModule = self._algorithm.build(self._config, spec)
        self._algorithm.initialize(self._draft, table_VD, table_VD, 0)
        self._weights = MasterWeights(self._draft, self._dtype)
        self._optimizer = AdamW(self._weights.weights, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        self._number = 0
        self.num_trained = sum(weight.numel() for weight in self._weights.weights.values())
        layers = len(self._algorithm.layer_ids(self._config, spec))
        documents = _documents(sizes, spec, layers, generator)
        self.num_tokens = sum(document.num_tokens for document in documents)
        self._packs = [
            _MicroBatch.of(_joined([documents[place] for place in places]), sizes.device, self._dtype)
            for places in pack([document.num_tokens for document in documents], sizes.micro_batch_tokens)
        ]
        rows = max(1, sizes.micro_batch_tokens // sizes.length)
        self._rows = [
            _MicroBatch.of(straightforward.padded(_joined(documents[first : first + rows])), sizes.device, self._dtype)
            for first in range(0, len(documents), rows)
        ]

    def ours(self) -> None:
        """One optimizer step, our way."""
        self._draft.compute_as(self._computation)
        self._train(self._packs, self._our_loss)

    def reference(self) -> None:
        """One optimizer step, the straightforward way."""
        self._draft.compute_as(Computation(attention=straightforward.DENSE))
        self._train(self._rows, straightforward.loss)

    def error(self) -> float:
        """Relative Frobenius distance between both sides' gradients on our packs, of the worst tensor."""
        found = []
        for loss, computation in (
            (self._our_loss, self._computation),
            (straightforward.loss, Computation(attention=straightforward.DENSE)),
        ):
            self._draft.compute_as(computation)
            self._backward(self._packs, loss)
            found.append({name: gradient.clone() for name, gradient in self._weights.gradients.items()})
        return measuring.worst_distance(*found)

    def flops(self) -> int:
        """Floating-point operations of a step's matrix products: those of the straightforward way without padding."""
        from torch.utils.flop_counter import FlopCounterMode

        self._draft.compute_as(Computation(attention=straightforward.DENSE))
        with FlopCounterMode(display=False) as counter:
            self._backward(self._packs, straightforward.loss)
        return int(counter.get_total_flops())

    def _our_loss(self, *arguments: Any) -> torch.Tensor:
        return self._algorithm.loss(*arguments).loss

    def _train(self, batches: Sequence[_MicroBatch], loss: Callable[..., torch.Tensor]) -> None:
        self._backward(batches, loss)
        clip(self._weights.gradients, float(self._weights.gradient_norm()), 1.0)
        self._number += 1
        self._optimizer.step(self._weights.gradients, number=self._number, lr=_LEARNING_RATE)
        self._weights.copy_to_module()

    def _backward(self, batches: Sequence[_MicroBatch], loss: Callable[..., torch.Tensor]) -> None:
        supervisions = [self._algorithm.supervise(batch.tokens, self._config, seed=0, step=0) for batch in batches]
        totals: dict[str, float] = {}
        for supervision in supervisions:
            for name, total in supervision.totals.items():
                totals[name] = totals.get(name, 0.0) + total
        self._weights.clear_gradients()
        for batch, supervision in zip(batches, supervisions, strict=True):
            on_device = supervision.to(batch.states.states_TLD.device)
            loss(self._draft, batch.states, on_device, totals).backward()  # type: ignore[no-untyped-call]


def _shrunk(spec: TargetSpec, divisor: int) -> TargetSpec:
    heads = max(1, spec.num_key_value_heads // divisor)
    return replace(
        spec,
        path=Path("shrunk"),
        hidden_size=max(8, spec.hidden_size // divisor),
        intermediate_size=max(8, spec.intermediate_size // divisor),
        vocab_size=max(64, spec.vocab_size // divisor),
        num_key_value_heads=heads,
        num_attention_heads=heads * (spec.num_attention_heads // spec.num_key_value_heads),
    )


def _documents(sizes: Sizes, spec: TargetSpec, layers: int, generator: torch.Generator) -> list[PackedStates]:
    """Documents of lengths from `length * (1 - spread)` to `length`, the first quarter of each a prompt."""
    shortest = max(2, round(sizes.length * (1 - sizes.spread)))
    drawn = torch.randint(shortest, sizes.length + 1, (sizes.documents,), generator=generator).tolist()
    documents = []
    for number, length in enumerate([sizes.length, *drawn[1:]]):
        documents.append(
            PackedStates(
                input_ids_T=torch.randint(0, spec.vocab_size, (length,), generator=generator),
                loss_mask_T=torch.arange(length) >= int(_PROMPT_SHARE * length),
                lengths=(length,),
                document_ids=(number,),
                states_TLD=torch.randn(length, layers, spec.hidden_size, generator=generator).bfloat16(),
                final_TD=torch.randn(length, spec.hidden_size, generator=generator).bfloat16(),
            )
        )
    return documents


def _joined(documents: Sequence[PackedStates]) -> PackedStates:
    return PackedStates(
        input_ids_T=torch.cat([document.input_ids_T for document in documents]),
        loss_mask_T=torch.cat([document.loss_mask_T for document in documents]),
        lengths=tuple(length for document in documents for length in document.lengths),
        document_ids=tuple(number for document in documents for number in document.document_ids),
        states_TLD=torch.cat([document.states_TLD for document in documents]),
        final_TD=torch.cat([document.final_TD for document in documents]),
    )


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The document as a table for people."""
    rows = [["", "tokens/s", "seconds", "extra peak MiB"]]
    for side in ("ours", "reference"):
        found = document[side]
        rows.append(
            [
                side,
                f"{found['tokens_per_second']:.0f}",
                f"{found['seconds']:.4f}",
                f"{found['extra_peak_bytes'] / 2**20:.1f}",
            ]
        )
    ratio = document["ratio"]
    rows.append(
        ["ratio", f"{ratio['tokens_per_second']:.3f}", f"{ratio['seconds']:.3f}", f"{ratio['extra_peak_bytes']:.4f}"]
    )
    if "mfu" in document:
        rows.append(["utilisation", f"{document['mfu']:.1%}", "", ""])
    rows.append(["gradient error", f"{document['max_rel_grad_error']:.1e}", "", ""])
    return rows
