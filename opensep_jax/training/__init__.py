"""The training step and what it needs; tasks say what is learned."""
