"""Stages: one file each, about 30 lines, that call one library function.

    flows ──► resolve             what enters from outside: target, sources, benchmarks, champion; never cached
      └─────► conversations, responses, tokens, states, train, import, calibrate, evaluate, register, gate, promote
                     │
                     ├──► runtime.stage       key, reuse, run, publish
                     ├──► generators          the target in this process, or servers that serve it
                     └──► deepspec            the work itself

    @stage(version=1, reads=("data.mask", "data.max_length_tokens"))
    def tokens(inputs, config, out, job): ...

`stages.py` lists all of them; `demo/` holds those that make the demo's inputs. To add one: a file, a line in
`stages.py`, and a line in a flow.
"""
