"""The learning rate of each optimizer step: linear warm-up, then half a cosine down to zero.

Source: spec page "Algorithms", Defaults.
"""

import math


def learning_rate(step: int, *, num_steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of optimizer step `step` (0-based, < num_steps); the first cosine step has exactly `peak`."""
    warmup_steps = math.floor(warmup_share * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (num_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
