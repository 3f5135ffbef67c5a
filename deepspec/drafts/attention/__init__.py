"""Attention in groups: each group of queries sees the start of its document's context, and all of its own keys.

    layers ──► choose ──► flex       one kernel over the whole pack, for GPUs
                 └──────► sdpa       scaled dot products with an explicit mask; a backward on every device
                            │
              both ─────────┴──► contracts     `AttentionGroups` says who sees whom, `AttentionBackend` what each offers

The two backends are equal to each other by test.
"""
