"""Settings of a pipeline file: their types, reading a file, `--set`, and messages with "did you mean"."""
