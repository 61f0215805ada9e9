"""Text side of the separator: captions, parsed sources, and the token states of their prompts."""
