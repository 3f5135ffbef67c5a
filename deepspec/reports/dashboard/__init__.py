"""The dashboard's page, from its feed: one file that needs nothing else.

    deepspec.dashboard ──► feed        its fields
                       └─► page ─┬─► overview       each model in a card, and what needs attention
                                 ├─► tau_chart      τ over time as SVG  ──► axes
                                 ├─► calendar       nights by month
                                 └─► lineage_picture

Figures are SVG without a fixed width: their places are shares of it, so that text keeps its size on a phone.
"""
