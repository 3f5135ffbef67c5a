"""Acceptance of a draft that a server runs (vLLM, SGLang).

    deepspec measure ──► measure ──► played ─┬─► replies     what each reply says of its own rounds
                            │                └─► counters    differences of two readings of GET /metrics
                            └──► data.responses.endpoint_pool     asks the same prompts as evaluation in process
    deepspec serve-check ──► serving.served_check ──► check ──► judged ──► causes
                                   └──► expected     what it has to answer: kept, or decoded here

The engine and its version are noted with the result. Only `expected` loads weights.
"""
