"""What an operator serves from: a draft with all that engines and people need, as a folder, at a hub, or in a bucket.

    flows.cli ──► write ──► target      what the draft was trained for, and whether that is still so
                    ├─────► commands    what starts an engine
                    └─────► index       bundle.json: every file with its SHA-256
    flows.cli ──► publish ──► index, hub, bucket     the same at a model hub or under an S3 prefix

The draft's files lie at the top, where engines and hubs look for them; files for engines in `serving/`, figures in
`plots/`. Only `hub.py` imports huggingface_hub.
"""
