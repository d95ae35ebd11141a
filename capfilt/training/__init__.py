"""Train models on image-text pairs.

recipe.py, recipe_sections.py   read and check a recipe
sources.py, samples.py          index the rows that can be used, and read them
epoch_order.py, loader.py       shuffle the rows, and form batches (batch.py); augment.py: image -> pixels
objectives/                     models and their losses, one file or folder each; base.py: their interface to the loop
trainer.py, loop.py             one run on one rank; state.py: checkpoints; log.py; validate.py; schedule.py; finite.py
distributed.py                  the same run on a Ray cluster
warmstart/, weight_average.py   tools for small BLIPs: towers that learn from other models, the mean of two models
"""
