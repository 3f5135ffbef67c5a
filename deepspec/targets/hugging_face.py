"""Targets whose layers are not all alike: Hugging Face's own module, its layers' outputs caught by hooks.

The only place that imports transformers' modelling code, which takes seconds; imported when such a target is loaded.

Shapes: B rows, H key/value heads, Q new positions, d head dim.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.utils import logging as transformers_logging

from deepspec.errors import UnsupportedTarget
from deepspec.targets.body import Body, BodyInputs, Captured
from deepspec.targets.cache import RowCache
from deepspec.targets.family import TargetSpec


class PastKeyValues(Cache):  # type: ignore[misc]  # transformers is untyped
    """A `RowCache` as Hugging Face's models take it: they call only `update` and a few questions about lengths.

    Args:
        rows: the cache.
    """

    def __init__(self, rows: RowCache) -> None:
        # Cache.__init__ would build layer objects; this cache has none: Hugging Face reads `layers` for its mask
        # building only, which is left out.
        self._rows = rows
        self.layers: list[Any] = []
        self.layer_class_to_replicate = None
        self.offloading = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See `RowCache.update`."""
        return self._rows.update(key_states, value_states, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Length of the longest row."""
        return max(self._rows.lengths_B)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        """(keys to attend to, their first position)."""
        return max(self._rows.lengths_B) + int(query_length), 0

    def __len__(self) -> int:
        return self._rows.num_layers


def load_module(spec: TargetSpec, *, device: str, dtype: str) -> tuple[Any, Tensor]:
    """The text model with its weights, frozen, and the head [V, D]; of a larger model only these are kept.

    Raises:
        UnsupportedTarget: the files hold fewer or other weights than such a text model has, which transformers would
            make up at random, or pass over.
    """
    # A library shows no progress bars of its own, and its warnings about weights are errors here.
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(spec.path),
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except RuntimeError as error:
        # How transformers says that a tensor has another shape than the configuration asks for.
        raise UnsupportedTarget(
            f"the weights do not fit: {error}", where=str(spec.path), remedy="Copy the directory again, all of it."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
    body = model.get_decoder()
    _check_weights(model, body, loading, spec)
    # Only these two: the rest of a larger model need not find room on the device. Tied weights stay tied.
    head = model.get_output_embeddings()
    for module in (body, head):
        module.to(device).eval().requires_grad_(requires_grad=False)
    head_VD: Tensor = head.weight
    return body, head_VD


def _check_weights(model: nn.Module, body: nn.Module, loading: Mapping[str, Any], spec: TargetSpec) -> None:
    prefix = next(name for name, module in model.named_modules() if module is body)
    text = (f"{prefix}.", "lm_head.")
    for kind, names in (
        ("missing", loading["missing_keys"]),
        ("not known to such a model", loading["unexpected_keys"]),
    ):
        wrong = sorted(name for name in names if name.startswith(text))
        if wrong:
            raise UnsupportedTarget(
                f"{len(wrong)} tensors are {kind}: {', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}.",
                where=str(spec.path),
                remedy="Copy the directory again, all of it; quantised weights and adapters cannot be used.",
            )


def body_of(module: Any, layer_ids: tuple[int, ...]) -> Body:
    """Hugging Face's text model as a target's body; computes all positions."""
    captured: Captured = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Some releases of transformers return a tuple per layer, newer ones the tensor.
            captured[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    for layer in layer_ids:
        watched = module.embed_tokens if layer == -1 else module.layers[layer]
        watched.register_forward_hook(keep(layer))

    def forward(inputs: BodyInputs) -> tuple[Tensor, Captured]:
        captured.clear()
        output = module(
            input_ids=inputs.input_ids_BQ,
            # A mapping is taken as it is: no mask is built. None means Hugging Face's plain rules (see causal_mask).
            attention_mask={_layer_type(window): mask for window, mask in inputs.masks.items()},
            position_ids=inputs.position_ids_BQ,
            past_key_values=None if inputs.cache is None else PastKeyValues(inputs.cache),
            use_cache=inputs.cache is not None,
        )
        return output.last_hidden_state, dict(captured)

    return forward


def _layer_type(window: int | None) -> str:
    """Hugging Face's name of layers with this window; its models have one window at most."""
    return "full_attention" if window is None else "sliding_attention"
