"""From mapping text to a flat plan. Read the modules in the order of the pipeline: see docs/architecture.md.

Nothing here opens a checkpoint, moves bytes or prints.
"""
