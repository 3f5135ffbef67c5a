"""What a command does behind its parsing, where that needs a flow or a run's record. No typer here.

    cli.runs ──► run ──► flows.runs, tasks.runtime.preview
            └──► estimate_text                            the estimate as text
    cli.drafts ──► compare ──► flows.compare
              └──► measure ──► evaluation.server          a server, next to the last run's evaluation
    cli.data ──► preview ──► tasks.runtime.preview        is the recipe's tokens artifact there?
    cli.bench ──► bench ──► deepspec.bench

Where a command has `--json`, `document` returns what it prints, and `show` prints the same for people.
"""
