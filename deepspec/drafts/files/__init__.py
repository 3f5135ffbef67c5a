"""Drafts as directories, in the layout of the public checkpoints.

    weights_file ──► config_json
    model.safetensors   config.json: written, read and checked without torch

The algorithms save and load through both; registries, exports and comparisons read `config_json` alone.
"""
