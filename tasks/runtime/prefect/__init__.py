"""What knows Prefect, which is imported inside functions: a run of hits never pays for it.

    execute ──► server ══► server_process     a quiet server of our own, where none is configured   ══ starts a process
       └──────► flow ──► server               one flow run for a call; what an error says of the server
    stage ────► concurrency                   concurrency slots of a shared server
       └──────► pages                         progress and results on Prefect's pages
    states ───► fan_out                       parts of a stage at once: threads, processes, Dask, Ray
    record.alive ──► ended                    flow runs whose process has died

The stage's own task is in `runtime/stage.py`: its cache key is the store's key, and its result a reference.
"""
