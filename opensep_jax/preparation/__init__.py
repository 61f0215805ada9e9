"""What `prepare` does, stage by stage, and a look at what it made."""
