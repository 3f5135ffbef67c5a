"""The places that hold artifacts: a local folder, or a bucket; one contract.

    artifacts ──► contract          what a place offers: ten operations, one of them atomic (`create`)
        ├───────► local             a folder: fsync, hard link
        └───────► s3 ──► s3_errors  a bucket: a single PUT with `If-None-Match: *`
                   └───► s3_location     `s3://` URLs, endpoint and region

boto3 is imported by `s3.py` and `s3_errors.py` alone, and those only when a store's URL asks for a bucket. To add a
place: one file that fulfils `contract.Backend`, and one line in `artifacts.open_store`.
"""
