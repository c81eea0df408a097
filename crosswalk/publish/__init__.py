"""A live model published as a Hugging Face checkpoint, over and over, and a small module for each kind of receiver.

Nothing here moves elements: that is runtime/publishing.
"""
