"""The layout ``fast_llm`` as a computation: a forward pass in plain torch, one function for each type of the layout.

Slow and readable on purpose: it says what the parameters mean, for checks and for readers. The docstring of a function
holds its formula, from which ``docs/layouts/fast_llm.md`` is generated. It needs torch and a native config with every
default filled in, and nothing of the compiler.
"""

from .model import ForwardOutput, forward

__all__ = ["ForwardOutput", "forward"]
