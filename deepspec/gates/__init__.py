"""May this challenger serve instead of the champion? Pure rules over measurements that were made elsewhere.

    tasks.gate ──► judge ──┬──► evidence     what is known of both drafts, the prompts that do not count left out
                           ├──► gain         is τ higher, beyond chance and beyond the luck of many nights?
                           │      └────► looks, detectable     the error a night may spend; what its prompts show
                           ├──► floors       τ on the gate split and on benchmarks, speed, calibration
                           ├──► domains      is no domain worse?
                           ├──► soundness    are answers equal with and without the draft? can it be exported, and
                           │                    does a server serve it as it was measured?
                           ├──► unseen       which prompts a draft may have trained on; they do not count
                           └──► verdict      what they say together, bound to the champion they measured

A gate is a class with a name and one method: evidence and thresholds in, its answer out. What was not measured is not
passed; what a recipe does not ask for, or a draft cannot have, is not asked. The guide's page "judging" has the rules,
their error rates and how these were found.

To add a gate: its fields in `config.Config`, its class, its line in `judge.GATES`, and a test per branch.
"""
