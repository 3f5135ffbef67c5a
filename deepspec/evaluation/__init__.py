"""What a draft is worth, measured.

    tasks.calibrate ──► calibration.run ──► calibration.fit      temperatures of the confidence head
    tasks.evaluate ───► evaluate ──► prompts        which prompts, chosen and encoded
    tasks.gate ───────────┘  ├─────► answering      plays them through an engine, turn by turn
                             ├─────► rounds, samples             files that keep what was decoded
                             ├─────► speed, threshold_sweep, load_test
                             └─────► metrics ──► intervals     owns acceptance length and rates; jackknife, Student's
    deepspec measure ─► server.measure              the same prompts through a server
    deepspec compare ─► compare                     paired differences between drafts

Each returns a value that is also its file's content: `results.py`, and a `results.py` in each folder. Reports, registry
and gates read these files as the same values.

`config.py` is the section `evaluate` of a recipe, `known_benchmarks.py` the table of benchmarks known by name. Nothing
here draws or writes pages: that is `deepspec.reports`.
"""
