"""Only what runs in which order: each file is short enough to be read as the DAG.

    deepspec run ─────────► cli ──► runs ──► retrain        conversations → … → promote
    a schedule ──► nightly ──────────┘  ├──► demo_inputs    the demo's own corpus, tokenizer and target, first
                                        └──► seeds          further training seeds, after
    deepspec import ──────► cli ──► runs ──► import_draft   import → … → promote
    deepspec compare ─────► cli ──► compare                 several drafts, one recipe's own stages

Every call in a flow is a cached stage of `tasks`: found in the store by its key, or made now. `nights/` makes
deployments of `nightly.py`; `deployed.py` is the name that older deployments know it by.
"""
