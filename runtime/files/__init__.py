"""Executes a plan from files to files: a schedule made in advance, tasks, and the workers that run them.

Nothing here knows live models or ranks.
"""
