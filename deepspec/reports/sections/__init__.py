"""What a page says of one draft's evaluation: tables as text, figures, and the sentences under them.

    run_page, comparison_page ──► acceptance ──► load        thresholds, throughput under load
                                      └────────► samples     answers, token by token

A section takes parts of `evaluation.json` and gives what a template shows; None stands for what was not measured.
"""
