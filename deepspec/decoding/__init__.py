"""Lossless speculative decoding: the acceptance rule as pure functions, a batched engine, the plain baseline."""
