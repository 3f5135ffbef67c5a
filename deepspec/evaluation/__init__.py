"""What a draft is worth, measured.

    tasks.calibrate ──► calibration.run ──► calibration.fit      temperatures of the confidence head
    tasks.evaluate ───► evaluate ──► prompts        which prompts, chosen and encoded
    tasks.gate ───────────┘  ├─────► answering      plays them through an engine, turn by turn
                             ├─────► rounds, samples             files that keep what was decoded
                             ├─────► speed, threshold_sweep, load_test
                             └─────► metrics        owns acceptance length and rates
    deepspec measure ─► server.measure              the same prompts through a server
    deepspec compare ─► compare                     paired differences between drafts

`config.py` is the section `evaluate` of a recipe, `known_benchmarks.py` the table of benchmarks known by name. Nothing
here draws or writes pages: that is `deepspec.reports`.
"""
