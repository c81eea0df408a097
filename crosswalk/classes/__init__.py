"""Models of transformers in memory: what their files hold of them, read off the conversion code of the class itself.

Needs transformers, and no mapping.
"""
