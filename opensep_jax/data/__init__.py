"""From data sets on disk to batches: `datasets` -> `records` -> `pipeline` -> `mix` (on device)."""
