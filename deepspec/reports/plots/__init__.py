"""The figures of pages, as drawings that need nothing else.

    sections, run_page, comparison_page ──► acceptance ──┐
                          sections.load ──► load ────────┴──► drawing     SVG and PNG of one figure

matplotlib is imported only when something is drawn.
"""
