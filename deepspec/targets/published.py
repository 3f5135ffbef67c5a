"""Shapes of published targets, so that a run can be estimated before a weight is downloaded.

From the models' public config.json files, in their layout; only what an estimate needs. Gemma 4's is put together from
public statements: its soft cap is in no count, and was not seen. A local directory always takes precedence.
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


def _gemma4_12b() -> Mapping[str, Any]:
    text = {
        "model_type": "gemma4_unified_text",
        "num_hidden_layers": 48,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
        "sliding_window": 1024,
        "hidden_size": 3840,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "intermediate_size": 15360,
        "vocab_size": 262144,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "num_kv_shared_layers": 0,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    whole = {"model_type": "gemma4_unified", "text_config": text, "tie_word_embeddings": True, "dtype": "bfloat16"}
    return MappingProxyType(whole)


PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Qwen/Qwen3-4B": _qwen3(36, 2560, 32, 9728, tied=True),
        "Qwen/Qwen3-8B": _qwen3(36, 4096, 32, 12288, tied=False),
        "Qwen/Qwen3-14B": _qwen3(40, 5120, 40, 17408, tied=False),
        "google/gemma-4-12B": _gemma4_12b(),
        "google/gemma-4-12B-it": _gemma4_12b(),
    }
)
