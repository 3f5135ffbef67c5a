"""What a stage and a run are.

    flows.runs ──► execute ──► preview ───────► flow(run)      every stage is looked up, nothing is made
        │             └──────► prefect.flow ──► flow(run)      every stage is found, or made:
        │                                           └──► stage ──► reasons, prefect.pages, prefect.concurrency
        │                                                  └─────► the store, the stage's function (with a Job)
        └────────► record                                      what the run leaves behind, and its signs of life

`flow.py` is the decorator of flows and what they return, `run.py` what the stages of one run share, `references.py`
what connects them, `records.py` one line per stage, `counts.py` what a stage counted, `display.py` where a person sees
it. A run whose stages all hit never starts Prefect; `interrupt.py` tells Ctrl-C from an error. A stage's function gets
a `Job` (`job.py`): device, work folder, progress, experiment tracker. It loads models with `loading.py`, and spreads
work over workers with `prefect/fan_out.py`.
"""
