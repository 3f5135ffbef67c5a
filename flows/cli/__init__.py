"""The `deepspec` command: one file per group of commands, which parses and prints.

    main ──► runs        demo, run, plan, explain ──► commands.run, planning
       ├───► models      models …, promote, rollback ──► registry
       ├───► drafts      compare, export, measure ──► commands.compare, registry, commands.measure
       ├───► data        data preview ──► commands.preview
       ├───► artifacts   artifacts … ──► store
       ├───► bench       bench … ──► commands.bench
       ├───► backup      backup ──► registry.backup
       └───► guide       guide ──► deepspec.guide
                └──► terminal, progress ──► heartbeat     options, tables and bars; no silence longer than five seconds

Everything heavy is imported by the command that needs it: `deepspec --help` answers in under half a second.
"""
