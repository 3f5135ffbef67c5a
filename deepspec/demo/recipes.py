"""Which shipped recipes run on the demo's inputs."""

ALL = ("demo-eagle3", "demo-dflash", "demo")
"""What `deepspec demo --all` runs: a recipe for each algorithm, alike in everything but name, draft and training."""
