"""Acceptance of a draft that a server runs (vLLM, SGLang), by the server's own counters.

    deepspec measure ──► measure ──► counters     differences of two readings of GET /metrics
                            └──────► data.responses.endpoint_pool     asks the same prompts as evaluation in process

The engine and its version are noted with the result. The target's weights are not loaded here.
"""
