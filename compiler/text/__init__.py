"""Text with positions: YAML, JSON and TOML documents, and what a JSON Schema says of them.

Nothing here knows what a mapping means.
"""
