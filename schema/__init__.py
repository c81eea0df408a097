"""The JSON Schemas (2020-12) of layouts, mappings and plans (data only)."""
