"""What a run leaves behind: how it ended, `run.json`, the report, and what is known of it should it die.

    execute ─────► result                        what came of each recipe, and one status
       └─────────► alive ──► prefect.ended       signs of life: a note and a lock; who died is ended by the next run
                     │ └──► run_record           ... and gets a record, with what it had paid
    alive, run_record ──► spent                  what a run itself used, stage by stage; from deepspec.cost
    flows.runs ──► run_record ──► result         `runs/<run id>/run.json` and `last-run.json`, of a result
         └───────► run_report ──► run_record     the page beside it, by deepspec.reports
                       └──► tracked_end          the end of its runs in MLflow

    record = record_of(result)                   what it holds is typed in `deepspec/record.py`, for all who read one
    write_record(record, home)                   first without a report, so that a report that fails loses no record
    page = write(result, record)
    read_record(home, run_id)                    the last run's by default

One line per stage (`records.py`) and what a stage counted (`counts.py`) lie above, with the stages that write them.
"""
