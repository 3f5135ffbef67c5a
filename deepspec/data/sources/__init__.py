"""Reads conversations as they come: JSON Lines, Parquet, or Hugging Face data sets, each row with its position.

    for row in read_rows(source, max_row_bytes=…):              readers.py
        messages, tools = parse_conversation(row.value, config)    parsing.py

    parsing ──► readers ──► hub         which part of a data set on the hub is meant, and its commit
       │           │
       │           └──────► rows        what one row is: its position, its value, why it is refused
       └──► tool_calls ───► rows        declared tools, the assistant's calls, the tools' results

A row that cannot be read or parsed raises `RowRejected`; the caller decides whether that is an error or a line in the
quarantine.
"""
