"""Mappings of the models of nobody: data only."""
