"""Autoregressive drafts, trained by unrolling them over their own outputs. Eagle3 is made of this.

    eagle3 ──► module ──► supervision    the network and its loss; what each unroll step learns
       └─────► drafter ─► module         the same weights inside decoding, one token a step

Both kinds of drafts have their body from `layers.py`.
"""
