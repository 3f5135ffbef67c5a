"""The consumers' side: a host pulls a promoted draft, follows the champion, serves it, and says what it holds.

    place = Place(Path("/models/draft"))
    draft = promoted("models:/mine@champion", home, store)         # by the store's promotion log
    outcome = pull(draft, store, place)                            # /models/draft/config.json, model.safetensors

    the command line ─┬─► follow ─┬─► pull ──► swap       every byte checked, then one rename
                      │           ├─► hook                a command after each swap
                      │           └─► followers           what this host holds, in the store
                      ├─► pull ──► names ──► promotions   which draft is meant
                      ├─► followers                       what every host holds
                      └─► serving ─┬─► prepare            a draft in an engine's format
                                   ├─► launch ──► process the engine's own server, as a child
                                   └─► live               another draft while it serves; vllm_side: its part in vLLM

DIR is a symbolic link to a folder of its own for each draft, in `.DIR.versions` next to it:

    draft ─► .draft.versions/5d1c0e3a9b7f-0c44e1d2/    config.json, model.safetensors, deepspec-pull.json
             .draft.versions/previous ─► 9a31b2…       the draft before, kept

A pull needs rights to read the store, and nothing else. Nothing here trains or decodes, and MLflow is asked only for
names that no promotion log knows.
"""
