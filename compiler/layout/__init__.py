"""The trainer's side: config types, their parameters and axes, and what a layout says about one config.

Nothing here knows Hugging Face.
"""
