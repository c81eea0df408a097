"""A mapping file as data: parsed, overlaid on what it extends, not yet checked against a layout.

Nothing here looks at a config or a tensor.
"""
