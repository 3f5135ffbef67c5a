"""What the decoding benches measure: a target, a draft for it, and prompts to decode.

Legend: none; prompts are token ids.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch

from deepspec.bench import measuring
from deepspec.decoding.profiling import Repeated
from deepspec.decoding.random import derive_seed
from deepspec.drafts import algorithm_of
from deepspec.drafts.algorithm import Drafter
from deepspec.errors import RecipeError
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target

_RANDOM_PROMPTS = 16
_PROMPT_COLUMN = "prompt_ids"


@dataclass(frozen=True)
class BenchPair:
    """What decodes, and what is asked.

    Attributes:
        target: captures the drafter's layers.
        drafter: None where only a target was named.
        prompts: token ids.
    """

    target: Target
    drafter: Drafter | None
    prompts: tuple[tuple[int, ...], ...]

    def requests(self, count: int, max_new_tokens: int) -> list[Repeated]:
        """Requests over the prompts, from the first one again when they are used up."""
        return [
            Repeated(str(index), self.prompts[index % len(self.prompts)], max_new_tokens, derive_seed("bench", index))
            for index in range(count)
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where target, draft and prompts are."""
    parser.add_argument("--pair", type=Path, help="folder with `target` and `draft`; default: the last run's")
    parser.add_argument("--target", type=Path, help="the target's folder, instead of the pair's")
    parser.add_argument("--draft", type=Path, help="the draft's folder, instead of the pair's")
    parser.add_argument(
        "--prompts", type=Path, help=f"Parquet file with token ids in `{_PROMPT_COLUMN}`; default: random ones"
    )
    parser.add_argument("--context", type=measuring.positive, default=32, help="length of random prompts (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of both sides; 0 is greedy (%(default)s)")
    parser.add_argument("--dtype", choices=tuple(measuring.DTYPES), help="of the weights (float32; bfloat16 on a GPU)")


def load(options: argparse.Namespace, *, needs_draft: bool) -> BenchPair:
    """Read them.

    Raises:
        RecipeError: a folder or file is missing, or holds no such thing.
        UnsupportedTarget, IncompatibleDraft: as in any run.
    """
    target_folder, draft_folder = options.target, options.draft
    if options.pair is not None:
        target_folder, draft_folder = target_folder or options.pair / "target", draft_folder or options.pair / "draft"
    for name, folder in (("--target", target_folder), ("--draft", draft_folder)):
        if folder is None and (name == "--target" or needs_draft):
            raise RecipeError("no folder is given.", where=name, remedy="Name a folder, or run a demo.")
        if folder is not None and not folder.is_dir():
            raise RecipeError(f"there is no folder {folder}.", where=name, remedy="Name a folder, or run a demo.")
    dtype = options.dtype or measuring.usual_dtype(options.device)
    drafter = None
    if draft_folder is not None:
        algorithm = algorithm_of(draft_folder)
        spec = read_spec(target_folder)
        draft = algorithm.load(draft_folder, spec, device=options.device, dtype=dtype)
        drafter = algorithm.drafter(draft.eval(), algorithm.read_config(draft_folder))
    layer_ids = drafter.layer_ids if drafter is not None else ()
    target = Target.load(target_folder, device=options.device, dtype=dtype, layer_ids=layer_ids)
    return BenchPair(target, drafter, _prompts(options, target))


def _prompts(options: argparse.Namespace, target: Target) -> tuple[tuple[int, ...], ...]:
    if options.prompts is None:
        draws = torch.Generator().manual_seed(0)
        shape = (_RANDOM_PROMPTS, options.context)
        return tuple(map(tuple, torch.randint(target.spec.vocab_size, shape, generator=draws).tolist()))
    try:
        column = pq.read_table(options.prompts, columns=[_PROMPT_COLUMN]).column(0).to_pylist()
    except (OSError, KeyError, ValueError) as error:
        raise RecipeError(
            f"{options.prompts} cannot be read: {error}",
            where="--prompts",
            remedy="Name a JSON Lines file of conversations.",
        ) from error
    if not column:
        raise RecipeError(
            f"{options.prompts} holds no prompt.", where="--prompts", remedy="Name a JSON Lines file of conversations."
        )
    return tuple(map(tuple, column))
