"""What this machine can do: ours against the straightforward way, in turns, as ratios in one JSON document.

`python -m deepspec.bench NAME …` needs torch, transformers, safetensors, pyarrow, pydantic and numpy, nothing more;
`deepspec bench NAME …` is the same. Each bench is one file with `add_arguments` and `measure`, and one line in
`__main__.BENCHES`:

    __main__ ──► attention  loss  train_step      against straightforward.py
            ├──► decode                           against simple_loop.py, on a target and draft of pair.py
            ├──► sps                              on the same pair: what the prefix scheduler reckons with
            └──► states  tokens                   bytes and rates of two stages
                      │
                      └──► measuring              how all of them take time and memory
"""
