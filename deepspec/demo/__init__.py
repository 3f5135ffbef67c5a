"""The demo's own inputs, made from a seed: nothing is fetched, nothing is copied from a data set.

    write_corpus(config, corpus_dir)                        conversations of three kinds, and benchmarks outside them
    write_tokenizer(config, corpus_dir, tokenizer_dir)      a byte-level tokenizer with a chat template
    write_target(config, corpus_dir, tokenizer_dir, …)      a small Qwen3-architecture target, trained on the corpus

    tasks.demo ──► corpus ──► arithmetic, chat, code ──► draws
              ├──► tokenizer ──► corpus
              └──► target ──► network     trained by the library's own loop
    flows.demo_inputs ──► inputs          copies in the home folder, where the recipes of recipes.py find them

The pipeline then runs on the results as on a user's own model and conversations; it knows nothing of this package.
"""
