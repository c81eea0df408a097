"""From a compiled mapping and one config to the flat plan: names, shapes and boxes of every tensor.

Nothing here moves bytes.
"""
