"""Shapes of published targets, so that a run can be estimated before a weight is downloaded.

From the models' public config.json files; only what an estimate needs. A local directory always takes precedence.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _qwen3(layers: int, hidden: int, heads: int, intermediate: int, *, tied: bool) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "model_type": "qwen3",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": intermediate,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": tied,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "dtype": "bfloat16",
        }
    )


PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Qwen/Qwen3-4B": _qwen3(36, 2560, 32, 9728, tied=True),
        "Qwen/Qwen3-8B": _qwen3(36, 4096, 32, 12288, tied=False),
        "Qwen/Qwen3-14B": _qwen3(40, 5120, 40, 17408, tied=False),
    }
)
