"""What is asked for: pipeline files, sources, decoding, rounds; reading, `--set` and "did you mean"."""
