"""What `infer` does with many inputs: reads lists, skips what is done, writes, reports."""
