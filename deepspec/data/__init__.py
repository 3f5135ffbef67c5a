"""From sources to token ids: the rooms are corridors, in the order in which a row walks through them.

    sources ──► conversations ──► responses ──► tokens
    read one    validated,        the target's  token ids and
    row         deduplicated,     own answer    loss masks
                split                │             │
                                     └──► chat ◄───┘     the target's chat template and tokenizer

Every corridor writes Parquet with `tables.py`, so that equal rows give equal bytes. A row that cannot be used goes to
the quarantine (`quarantine.py`) with its reason; `provenance.py` keeps where each row came from; `config.py` is the
section `data` of a recipe. The stages in `tasks` call one function of each corridor:

    conversations.build.write_conversations    responses.regenerate.write_responses    tokens.encode.write_tokens
"""
