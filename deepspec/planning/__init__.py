"""What a run will take, before anything runs.

    deepspec plan ─────► before_run ──► estimate ──► gpus     tokens, bytes, work, hours, cost, room on disk
                             └────────► memory ────► gpus     peak memory of training and capture; needs torch
    tasks.runtime ─────► budget ──────► before_run            refuses what is over budget or has no room

`before_run.py` counts the conversations that are there and samples their lengths; the other files only compute. All of
them speak of an `Estimate` (results.py).
"""
