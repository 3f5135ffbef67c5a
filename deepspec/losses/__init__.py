"""The terms that drafts learn by, each twice.

    drafts.block, drafts.unrolled ──► chunked ──► chunk_sweep     without logits: in chunks, with exact gradients
                          tests ────► terms                       the same terms written plainly: the reference

`chunked.py` is what training calls for everything over the vocabulary, `terms.py` for what is small (the confidence
head's loss). Tests compare the two, value and gradient.
"""
