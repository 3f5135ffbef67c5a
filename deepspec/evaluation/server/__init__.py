"""Acceptance of a draft that a server runs (vLLM, SGLang).

    deepspec measure ──► measure ──► played ─┬─► replies     what each reply says of its own rounds
                            │                └─► counters    differences of two readings of GET /metrics
                            └──► data.responses.endpoint_pool     asks the same prompts as evaluation in process

The engine and its version are noted with the result. The target's weights are not loaded here.
"""
