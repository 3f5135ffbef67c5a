"""Reads Parquet files from elsewhere, in a process of its own: what pyarrow does on damaged bytes may end it.

    table_size(path)                           rows, bytes, row groups
    for row in parquet_rows(path, …): …        all rows
    for value in rows_of_groups(path, …): …    the first rows of some row groups

    process ──► worker ──► parquet ──► pages     sizes are refused before anything is unpacked
       └──► frames ◄──┘       └─────► batches    rows, a few at once ──► columns: which hold conversations

Of a Parquet file with one changed byte pyarrow can neither be trusted to say so when it looks at the footer nor while
it reads rows: on 136 of 8,146 such files it ended the process, about half of them at either place.
"""
