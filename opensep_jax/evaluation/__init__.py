"""What `evaluate` is made of: protocols, systems, scores, a journal, tables."""
