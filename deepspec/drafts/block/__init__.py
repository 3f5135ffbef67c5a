"""Block-parallel drafts: all tokens of a block in one pass. DFlash and DSpark are made of this.

    dflash, dspark ──► algorithm ──► module ──► supervision  the network; anchors, and which positions are supervised
                │         ├────────► loss ────► module       term by term
                │         └────────► drafter ─► module       the same weights inside decoding
                └──► heads                                   previous token, confidence

`config.py` holds the recipe fields of every block draft. `BlockAlgorithm` is a whole algorithm but for the weights of
its loss terms; what one adds, it overrides.
"""
