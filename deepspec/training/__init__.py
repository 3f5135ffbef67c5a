"""Training: one loop for every model, run in processes of its own.

    result = launch(TrainJob(objective="deepspec.training.draft_objective:objective", …), work_dir=…)

    tasks.train ──► processes.launch ══► processes.worker ──► loop.fit     ══ starts processes
                                                │                │
                                                │                ├──► objective      handed in: what is trained
                                                │                ├──► optimizer, schedule, parallel, sharded
                                                │                ├──► checkpoint     restartable to the bit
                                                │                └──► memory.peak, metric_stream
                                                └──► draft_objective ──► drafts, states, decoding

`job.py` is what goes to the processes, `failure.py` an error that comes back, `config.py` the section `train` of a
recipe. The loop knows nothing of models, files of states, or trackers. Read `objective.py` first, then `loop.py`.
"""
