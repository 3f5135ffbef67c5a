"""Runs in vLLM's workers: a weight transfer that reads a draft from a directory.

vLLM's calls for a new draft (`/start_draft_weight_update`, `/update_weights`, `/finish_weight_update`) leave to a named
transfer how tensors come, and each that it has itself needs a GPU on both sides. `--worker-extension-cls
deepspec_vllm.Worker` imports this file, which registers one more: `--weight-transfer-config '{"backend": "deepspec"}'`.

An update is one call to every worker between two steps of the engine: no step sees a part of it, and requests go on
behind it. It is checked before anything is touched; where it fails, the draft that was there stays. vLLM's own reload
of a model layer by layer does not do on a CPU: block drafts join keys' weights of all layers after loading, and the
kernel there has taken them away by then. Source: vLLM 0.32.0.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

UNREAD = (
    "attention_dropout",
    "initializer_range",
    "num_anchors",
    "step_loss_decay",
    "target_model_name_or_path",
    "tokenizer_fingerprint",
)
"""Fields of a config.json that say how the draft was trained, or what for: two drafts may differ in them."""

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
Parameters = dict[torch.nn.Module, dict[str, torch.nn.Parameter | None]]


class Worker:
    """Added to vLLM's class of workers, for the sake of this file's import."""


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What a directory needs to be agreed on beforehand."""


@dataclass
class Directory(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the new draft lies, as every worker sees it, in the format that the running one was started from."""

    directory: str


class DirectoryTransfer(WeightTransferEngine):  # type: ignore[misc]
    """Puts the tensors of a directory into the draft that runs."""

    init_info_cls = Nothing
    update_info_cls = Directory

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        started_from = Path(self.vllm_config.speculative_config.draft_model_config.model)
        self._config, self._shapes = _config_of(started_from), _shapes_of(started_from)

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """There is nothing to agree on."""

    def start_weight_update(self) -> None:
        """All is done in `receive_weights`: between two calls the engine may make a step."""

    def finish_weight_update(self) -> None:
        """All is done in `receive_weights`."""

    def shutdown(self) -> None:
        """There is nothing to release."""

    def receive_weights(self, update_info: Directory) -> None:
        """Let the draft have the directory's tensors.

        Raises:
            ValueError: it holds another kind of draft, or tables of tokens that the target does not share.
        """
        directory = Path(update_info.directory)
        if self.model is self._default_model:
            raise ValueError("Only the draft can be updated from a directory, not the target.")
        self._refuse_other_shape(directory)
        tensors = load_file(directory / "model.safetensors")
        shared = self._refuse_other_tables(tensors)
        own = [module for module in self.model.modules() if module not in shared]
        with torch.no_grad(), _as_before_loading(own):
            self.model.load_weights((name, tensors[name]) for name in tensors if name not in shared.values())
            for module in own:
                method = getattr(module, "quant_method", None)
                if isinstance(method, QuantizeMethodBase):
                    method.process_weights_after_loading(module)

    def _refuse_other_shape(self, directory: Path) -> None:
        config, shapes = _config_of(directory), _shapes_of(directory)
        for name in sorted({*config, *self._config} - {*UNREAD}):
            if config.get(name) != self._config.get(name):
                raise ValueError(f"Field {name} is {config.get(name)!r}, and {self._config.get(name)!r} runs.")
        for name in sorted({*shapes, *self._shapes}):
            if shapes.get(name) != self._shapes.get(name):
                raise ValueError(f"Tensor {name} is {shapes.get(name)}, and {self._shapes.get(name)} runs.")

    def _refuse_other_tables(self, tensors: Mapping[str, torch.Tensor]) -> dict[torch.nn.Module, str]:
        """The modules that vLLM lets the draft share with the target, with their tensors' names: never written to.

        Raises:
            ValueError: the new draft has others.
        """
        of_target = set(self._default_model.modules())
        tables = {"embed_tokens.weight": self.model.model.embed_tokens, "lm_head.weight": self.model.lm_head}
        shared = {module: name for name, module in tables.items() if module in of_target}
        for module, name in shared.items():
            if name in tensors and not _holds(module, tensors[name]):
                raise ValueError(f"Tensor {name} is not the target's, which the running draft shares.")
        return shared


def _config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return found


def _shapes_of(directory: Path) -> Shapes:
    with safe_open(directory / "model.safetensors", framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
        return {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}


def _holds(module: torch.nn.Module, table: torch.Tensor) -> bool:
    """Whether a table of tokens, or this worker's part of it, is the one that a module holds."""
    held = module.get_parameter("weight")
    part = torch.nn.Parameter(torch.zeros_like(held), requires_grad=False)
    part.__dict__.update(held.__dict__)
    load: Callable[[torch.Tensor, torch.Tensor], None] = getattr(module, "weight_loader")  # noqa: B009  # vLLM's
    load(part, table)
    return torch.equal(part, held)


@contextmanager
def _as_before_loading(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Give modules the parameters that loading expects for the block; afterwards their own again, with the new values.

    A kernel may keep weights in a form of its own (a CPU's does), and a graph the address of a parameter. Where the
    block fails, all is as it was.
    """
    held: Parameters = {module: dict(module._parameters) for module in modules}  # noqa: SLF001
    try:
        for module in modules:
            fresh, _ = get_layerwise_info(module).restore_metadata
            for name, parameter in fresh.items():
                _put(module, name, materialize_meta_tensor(restore_layer_refs(parameter, module)))
        yield
        for module, parameters in held.items():
            for name, parameter in parameters.items():
                if parameter is not None:
                    parameter.data.copy_(module.get_parameter(name).data)
    finally:
        for module, parameters in held.items():
            for name in list(module._parameters):  # noqa: SLF001
                delattr(module, name)
            for name, parameter in parameters.items():
                _put(module, name, parameter)


def _put(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
    if name in module._parameters:  # noqa: SLF001
        delattr(module, name)
    module.register_parameter(name, parameter)


WeightTransferEngineFactory.register_engine("deepspec", DirectoryTransfer)
