"""What a training takes of memory: measured while it runs, and estimated before.

    loop.fit ─────────────► peak ────────────┐
    planning.memory ──────► step_estimate ───┴──► tensor_counter     bytes of tensors that are alive at once

`step_estimate.py` runs a step's own code on tensors without content.
"""
