"""The small languages inside of mapping files: expressions, patterns of axes, templates of names.

Nothing here knows layouts or configs.
"""
