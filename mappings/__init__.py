"""The shipped mapping files, one per architecture, and the layouts they map onto (data only)."""
