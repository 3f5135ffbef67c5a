"""Served requests as a source: of a window's days what may be taken, as files that `sources` reads like any other.

    dated ──► intake ──► window       which days there are; a day's rows as a file; a window's days as a folder
      exchange, redaction ─┘          what a row of a log says; what takes personal data out of it

All of this is done where inputs are resolved, before any key is made: keys see the content of what was taken, and so
neither the clock nor rows that may not be used. A day is taken once for as long as its logs and the settings stay the
same; what the copies are is in `window.py`.
"""
