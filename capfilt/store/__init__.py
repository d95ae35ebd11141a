"""What lies on disk: schema, shards, Parquet, run folder, sidecars, fingerprints."""
