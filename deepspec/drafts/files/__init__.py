"""Drafts as directories, in the layout of the public checkpoints.

    weights_file ──► config_json ◄── public_files
    model.safetensors   config.json: written, read and checked without torch
                                     what others have published: which files count, and that they are safe

The algorithms save and load through both; registries, exports and comparisons read `config_json` alone.
"""
