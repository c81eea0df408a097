"""The command line: options, tables and how problems look on a terminal.

Nothing here decides; every command calls a job.
"""
