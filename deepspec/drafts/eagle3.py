"""Eagle3: an autoregressive draft of one decoder layer, trained by unrolling it over its own outputs.

Source: EAGLE-3 paper (arXiv 2503.01840) and spec page "Algorithms"; where they disagree, the page. Imports no torch by
itself: what needs it is imported when it is first called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from deepspec.config import Section
from deepspec.drafts.algorithm import Algorithm, Drafter, LossOutput
from deepspec.drafts.files.config_json import (
    check_fields,
    check_fits,
    read_draft_config,
    unrolled_config,
    unrolled_form,
)
from deepspec.drafts.layer_choice import chosen_layer_ids
from deepspec.drafts.structure import UnrolledForm
from deepspec.targets.family import TargetSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepspec.drafts.unrolled.module import UnrolledDraft
    from deepspec.drafts.unrolled.supervision import UnrollSupervision
    from deepspec.states.batch import PackedStates


class Config(Section):
    """`draft:` of a recipe with `algorithm: eagle3`.

    Attributes:
        algorithm: "eagle3".
        num_draft_tokens: γ, tokens proposed per round, and training-time-test steps: a draft is asked for as many
            steps as it was unrolled for.
        num_layers: decoder layers of the draft.
        target_layer_ids: the target's layers whose outputs the draft reads; None: the target's usual ones.
        step_loss_decay: step s weighs step_loss_decay^s.
    """

    algorithm: Literal["eagle3"] = "eagle3"
    num_draft_tokens: int = Field(7, ge=1, le=64)
    num_layers: int = Field(1, ge=1)
    target_layer_ids: tuple[int, ...] | None = None
    step_loss_decay: float = Field(0.8, gt=0)


def _form(config: Config, spec: TargetSpec) -> UnrolledForm:
    return UnrolledForm(
        num_steps=config.num_draft_tokens, num_layers=config.num_layers, layer_ids=_layer_ids(config, spec)
    )


def _owns(config: Mapping[str, Any]) -> bool:
    return "ttt_length" in config


def _check(config: Config, spec: TargetSpec) -> None:
    _form(config, spec)


def _layer_ids(config: Config, spec: TargetSpec) -> tuple[int, ...]:
    return chosen_layer_ids(config.target_layer_ids, spec)


def _num_draft_tokens(config: Config) -> int:
    return config.num_draft_tokens


def _build(config: Config, spec: TargetSpec) -> "UnrolledDraft":
    from deepspec.drafts import initialization
    from deepspec.drafts.unrolled.module import UnrolledDraft

    return initialization.build(lambda: UnrolledDraft(_form(config, spec), spec))


def _initialize(draft: "nn.Module", embedding_VD: "Tensor", head_VD: "Tensor", seed: int) -> None:
    from deepspec.drafts import initialization
    from deepspec.drafts.unrolled.module import unrolled_draft

    initialization.initialize(draft, unrolled_draft(draft).spec.initializer_range, embedding_VD, head_VD, seed)


def _supervise(batch: "PackedStates", config: Config, *, seed: int, step: int) -> "UnrollSupervision":  # noqa: ARG001
    from deepspec.drafts.unrolled.supervision import unroll_supervision

    return unroll_supervision(batch, num_steps=config.num_draft_tokens, step_decay=config.step_loss_decay)


def _loss(draft: "nn.Module", batch: "PackedStates", supervision: Any, totals: Mapping[str, float]) -> LossOutput:
    from deepspec.drafts.unrolled.module import unrolled_loss

    return unrolled_loss(draft, batch, supervision, totals)


def _drafter(draft: "nn.Module", config: Config) -> Drafter:  # noqa: ARG001  # the draft knows its form
    from deepspec.drafts.unrolled.drafter import UnrolledDrafter
    from deepspec.drafts.unrolled.module import unrolled_draft

    return UnrolledDrafter(unrolled_draft(draft))


def _save(draft: "nn.Module", directory: Path, config: Config, spec: TargetSpec) -> None:
    from deepspec.drafts.files import weights_file as draft_directory
    from deepspec.drafts.unrolled.module import unrolled_draft

    dtype = str(unrolled_draft(draft).fc.weight.dtype).removeprefix("torch.")
    written = unrolled_config(_form(config, spec), spec, dtype, config.step_loss_decay)
    draft_directory.save(draft, directory, written)


def _load(
    directory: Path,
    spec: TargetSpec,
    *,
    config: Config | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> "nn.Module":
    import torch

    from deepspec.drafts import initialization
    from deepspec.drafts.files.weights_file import load_weights
    from deepspec.drafts.unrolled.module import UnrolledDraft

    written = read_draft_config(directory)
    found = unrolled_form(written, directory)
    check_fits(written, spec, directory)
    if config is not None:
        wanted = _form(config, spec)
        check_fields(
            {
                "ttt_length": (found.num_steps, wanted.num_steps),
                "draft_num_hidden_layers": (found.num_layers, wanted.num_layers),
                "target_layer_ids": (list(found.layer_ids), list(wanted.layer_ids)),
            },
            directory,
        )
    with torch.device(device):
        draft = initialization.build(lambda: UnrolledDraft(found, spec)).to(getattr(torch, dtype))
    load_weights(draft, directory)
    return draft


def _read_config(directory: Path) -> Config:
    written = read_draft_config(directory)
    form = unrolled_form(written, directory)
    return Config(
        num_draft_tokens=form.num_steps,
        num_layers=form.num_layers,
        target_layer_ids=form.layer_ids,
        step_loss_decay=float(written.get("step_loss_decay") or 0.8),
    )


ALGORITHM = Algorithm(
    name="eagle3",
    Config=Config,
    owns=_owns,
    check=_check,
    layer_ids=_layer_ids,
    num_draft_tokens=_num_draft_tokens,
    build=_build,
    initialize=_initialize,
    supervise=_supervise,
    loss=_loss,
    drafter=_drafter,
    save=_save,
    load=_load,
    read_config=_read_config,
)
