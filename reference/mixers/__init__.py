"""Mixers: what carries information from one element of a sequence to another."""
