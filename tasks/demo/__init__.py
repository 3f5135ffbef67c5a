"""The stages that make the demo's inputs.

    flows.demo_inputs ──► demo_corpus ──► demo_tokenizer ──► demo_target
                               └─────────────────────────────────┘

Each calls one function of `deepspec.demo`. The retraining flow knows none of them.
"""
