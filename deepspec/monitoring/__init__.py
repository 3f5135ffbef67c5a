"""Served acceptance as a stream: windows of rounds, sequential tests against two references, and what an alarm means.

    served answers ──► streams (windows) ──► detector (evidence) ──► alarms ──► causes ──► memory (in the store)

The unit is an answer (or a stretch between two readings of counters), never a round: rounds of one answer resemble each
other. Nothing here decodes; what a reply or a counter says is read by `deepspec.evaluation.server`.
"""
