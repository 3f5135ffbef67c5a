"""Reads tables of others, in a process of its own: what pyarrow does on damaged bytes may end it.

    table_size(path)                           rows, bytes, row groups of a Parquet file
    for row in parquet_rows(path, …): …        all rows
    for value in rows_of_groups(path, …): …    the first rows of some row groups
    for row in saved_rows(folder, …): …        of a `datasets` folder's Arrow files
    for row in hub_rows(location, …): …        of a data set on the hub

    process ──► worker ──► parquet ──► pages         sizes are refused before anything is unpacked
       └──► frames ◄──┘├─► arrow ──► arrow_sizes     likewise; and what a batch points at, before it is read
                       └─► hub_tables
                              └──► batches           rows, a few at once ──► columns: which hold conversations

Nothing outside opens a Parquet or Arrow file that others have written. Of a Parquet file with one changed byte pyarrow
can neither be trusted to say so when it looks at the footer nor while it reads rows: on 136 of 8,146 such files it
ended the process, about half of them at either place. Of an Arrow file it checks nothing by itself: on 34 of 600 it
ended the process, and on 269 it raised an error that has nothing to do with files.
"""
