"""Captures a target's states: tokens in, a folder of states out.

    writer.write_states ──► survey             lengths of all documents, and in which shard each will lie
            ├─────────────► finished_shards    what an interrupted capture need not make again
            └─────────────► origin.states      handed in: `RunTarget`, or `engine_files.CapturedFiles`
    parts.capture_part ───► writer             the same by several workers, some of the shards each

What is in a shard follows from its own documents, so shards are made in any order, by any number of processes.
"""
