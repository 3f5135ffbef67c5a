"""The dashboard: one static page about a store's models, and its feed, collected from what runs have left there.

    flows ──► publish ─┬─► collect ─┬─► nights       runs, from the history
                       │            ├─► champions    who serves and why, from the promotion logs
                       │            │      └─► lineage
                       │            └─► present      followers, and runs that are alive
                       └─► deepspec.reports.dashboard  the feed's fields, and the page

What was collected before is taken from the earlier feed, so that a night costs a few requests, however many came
before it. Neither runs nor hosts know of the page: losing it is harmless.
"""
