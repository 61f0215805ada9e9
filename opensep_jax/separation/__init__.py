"""From a signal of any length to stems: batches on a device, overlap-add, what comes out."""
