"""Crosswalk: one mapping file per architecture, compiled to a plan that converts model checkpoints both ways."""
