"""Block-parallel drafts: all tokens of a block in one pass. DFlash and DSpark are made of this.

    dflash, dspark ──► algorithm ──► module ──► heads        the network: previous token, confidence
                          │             └─────► supervision  anchors, and which positions are supervised
                          └────────► drafter ─► module       the same weights inside decoding

`block_algorithm(…)` makes an `Algorithm` of a structure and the weights of its loss terms.
"""
