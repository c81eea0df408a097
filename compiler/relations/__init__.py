"""The compiled mapping: one tree of relations without direction, and what can be checked before any config is known.

Nothing here reads or writes a config.
"""
