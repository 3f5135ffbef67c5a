"""Reading an artifact's files where they are; each piece of a file is compared with its checksum.

    states.reader ──► files ──► piece_cache     pieces of files in a bucket, kept on the local disk
                        ├─────► tables ──┐      a Parquet file, a row group at a time
                        ├────────────────┴──► attempts      what fails is read again; what the last failure means
    artifact ───────────┴─────► pieces          checksums of files, whole and by row group or tensor

`open_files(location)` reads by range from a bucket, or maps a local file; damage raises `ArtifactDamaged`, and the
flow makes that artifact again, once.
"""
