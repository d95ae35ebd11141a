"""The files of a run: schema, shards, Parquet, run folder, sidecars, fingerprints."""
