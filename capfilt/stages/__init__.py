"""The stages of the pipeline, one file each; `catalog` lists them in order."""
