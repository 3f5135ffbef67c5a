"""Drafts as directories, in the layout of the public checkpoints.

    weights_file ──► config_json ◄── public_files     config.json: written, read and checked without torch
          │                                │          what others have published: which files count, and are safe
          └─────────► stored ◄─────────────┘          which file each tensor is in: one, or several with an index

The algorithms save and load through both; registries, exports and comparisons read `config_json` alone.
"""
