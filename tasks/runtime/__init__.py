"""What a stage and a run are.

    flows.runs ──► execute ──► preview ───────► flow(run)      every stage is looked up, nothing is made
        │             └──────► prefect.flow ──► flow(run)      every stage is found, or made:
        │                                           └──► stage ──► reasons, prefect.pages, prefect.concurrency
        │                                                  └─────► the store, the stage's function (with a Job)
        ├────────► alive                                       signs of life: who died is ended by the next run
        └────────► run_record, run_report                      what the run leaves behind

`flow.py` is the decorator of flows and what they return, `run.py` what the stages of one run share, `references.py`
what connects them, `records.py` one line per stage, `result.py` how the run ended. A run whose stages all hit never
starts Prefect. A stage's function gets a `Job` (`job.py`): device, work folder, progress, experiment tracker. It loads
models with `loading.py`, and spreads work over workers with `prefect/fan_out.py`.
"""
