"""What a stage and a run are.

    flows.runs ──► execute ──► plan ──────────► flow(run)      every stage is looked up, nothing is made
        │             └──────► prefect.flow ──► flow(run)      every stage is found, or made:
        │                                           └──► stage ──► prefect.concurrency, prefect.pages
        │                                                  └─────► the store, the stage's function
        └────────► run_record, run_report                      what the run leaves behind

`run.py` is what the stages of one run share, `references.py` what connects them, `records.py` one line per stage,
`result.py` how the run ended. A run whose stages all hit never starts Prefect. Stages load models with `loading.py`,
reach the experiment tracker with `tracking.py`, and spread work over workers with `prefect/fan_out.py`.
"""
