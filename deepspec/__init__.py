"""Retrain, judge and ship draft models for speculative decoding.

The library: everything that works without an orchestrator or a tracking server. A room imports only what is
below its own line:

    bench   demo             what this machine can do; inputs that deepspec makes itself
    planning                 what a run will take, and what refuses it
    inputs                   a recipe's inputs as local paths
    recipe                   the one typed configuration of a run
    registry  reports        registered drafts, the promotion log, MLflow; pages, terminal tables, figures
    record                   the record of a run, `run.json`, as values
    gates                    is this challenger better than the champion?
    export                   drafts in the formats that other systems read
    evaluation               what a draft is worth, measured
    training                 one loop for every model, in processes of its own
    decoding                 lossless speculative decoding
    drafts                   the algorithms and their modules
    states                   the target's states, captured before or live
    targets  losses          the model that verifies; the terms that a draft learns by
    data                     from sources to token ids
    home                     which store is used, and which code version writes to it
    store                    content-addressed artifacts
    the ground               account  atomic_write  config  file_lock  foreign_json  guide  keyed_random  network
                             progress  units  usage  yaml; below them file_system, and errors

Read `recipe.py` for what a run is made of, `store/` for where results live, `drafts/algorithm.py` and
`targets/family.py` for the two extension points.
"""

__version__ = "0.1.0"
