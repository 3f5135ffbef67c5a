"""How results are shown: self-contained pages, terminal tables, figures. Measures nothing.

    tasks.runtime.record ──► run_page ─────────┐
                    └──────► overview_page     │
    deepspec compare ──────► comparison_page ──┴──► sections ──► plots          text, tables, figures
                                   │                   │           │
                                   └───────────────────┴──► rendering ──► plots.drawing
    flows.cli ──► run_terminal, comparison_terminal     the same in 80 columns

Pages are written from values: `RunReport` (run_page.py), `Comparison` (evaluation/compare) and `RunRecord`
(record.py). They are templates (`templates/`) whose values are escaped; `formatting.py` writes every number the same
way everywhere.
"""
