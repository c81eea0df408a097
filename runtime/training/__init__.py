"""Executes a plan into and out of live models, sharded or not: what a rank holds, how it gets there, and how ranks
agree.

Nothing here knows mappings or configs.
"""
