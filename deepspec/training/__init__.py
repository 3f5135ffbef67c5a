"""Training: one loop for every model, run in processes of its own.

    result = launch(TrainJob(objective="deepspec.training.draft_objective:objective", …), work_dir=…)

`launch` starts `worker` (under torchrun when there are several processes), which builds the job's `Objective` and hands
it to `fit`. The loop knows nothing of the model; `checkpoint` makes it restartable to the bit; `metric_stream` carries
its numbers out. Read `objective.py` first, then `loop.py`.
"""
