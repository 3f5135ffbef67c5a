"""What this machine can do: ours against the straightforward way, in turns, as ratios in one JSON document.

`python -m deepspec.bench NAME …` needs torch, transformers, safetensors, pyarrow, pydantic and numpy, nothing more;
`deepspec bench NAME …` is the same. Each bench is one file with `add_arguments` and `measure`, and one line in
`__main__.BENCHES`; `measuring.py` is how all of them take time and memory.
"""
