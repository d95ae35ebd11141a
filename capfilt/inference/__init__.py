"""From rows to a model: batches, decoding threads, transfer to the device."""
