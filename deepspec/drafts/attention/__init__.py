"""Block attention: each block sees the first positions of its document's context, and all of its own keys.

    layers ──► choose ──► flex       one kernel over the whole pack, for GPUs
                 └──────► sdpa       scaled dot products with an explicit mask; a backward on every device
                            │
              both ─────────┴──► contracts     `Blocks` says who sees whom, `Backend` what a way to compute offers

The two backends are equal to each other by test.
"""
