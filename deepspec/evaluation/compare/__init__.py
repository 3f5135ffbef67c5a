"""How much drafts differ on the same prompts, with paired intervals.

    deepspec compare ──► drafts             two drafts, per benchmark and domain
    flows.seeds ───────► seeds ──► drafts   algorithms over several training seeds

Both take the rounds that evaluations kept (`rounds.parquet`), and decode nothing.
"""
