"""Run models on rows: batches, decoding threads, transfer to the device."""
