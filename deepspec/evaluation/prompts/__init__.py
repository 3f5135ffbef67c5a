"""Prompts that drafts are judged on: found, chosen, encoded.

    evaluate, server.measure ──► selection ──► files     a benchmark's files or data set, row by row
    tasks.conversations ───────────┘                     (the prompts that training must not see)

What the known benchmarks are is in `evaluation/known_benchmarks.py`; decoding is not here.
"""
