"""The target's states, which a draft is trained on: captured before (offline), or while training (online).

    tokens ──► capture ──► format ──► files ──► reader ──► batch      offline
    tokens ──► token_documents ──► live ─────────────────► batch      online

    training.draft_objective ──► reader   files: a few row groups in memory, the next ones ahead (prefetch.py)
                             └─► live     a live target, asked when a step needs its states
                                   both pack `PackedTokens`, which are supervised, and then add the states to them
                                   (`PackedStates`, batch.py), in the order of order.py

The order is a pure function of (seed, epoch) and of where documents lie, so both ways train on the same batches.
"""
