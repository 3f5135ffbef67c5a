"""What a page says of one draft's evaluation: tables as text, figures, and the sentences under them.

    run_page, comparison_page ──► acceptance ──► load        thresholds, throughput under load
                                      └────────► samples     answers, token by token

A section takes parts of an evaluation and gives what a template shows, as dataclasses of text; None stands for what was
not measured.
"""
