"""A first draft of a mapping: from config.json, the headers, the shipped mappings and the class, where it is installed.

Nothing here prints.
"""
