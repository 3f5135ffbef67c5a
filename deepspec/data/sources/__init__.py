"""Reads conversations as they come: JSON, Parquet, or Hugging Face data sets, each row with its position.

    for source in find_sources(patterns):                        finding.py: which files there are
        for row in read_rows(source, max_row_bytes=…):           readers.py
            found = parse_conversation(row.value, config)        parsing.py

    readers ──► json_rows, hub              formats; a data set on the hub: which part is meant, and its commit
       ├──────► columnar                    Parquet and Arrow, in a process of its own, which damaged bytes may end
       ├──────► saved                       which Arrow files a `datasets` folder has
       ├──────► finding ──► opening         files, plain or packed
       └──────► account                     rows and fields that were read, and those that were not
    parsing ──► forms ──► tool_calls        the forms of a row, and the fields that each reads; tools, calls, results

    All stand on rows.py: what one row is, its position, its value, why it is refused.

A row that cannot be read or parsed raises `RowRejected`; the caller decides whether that is an error or a line in the
quarantine.
"""
