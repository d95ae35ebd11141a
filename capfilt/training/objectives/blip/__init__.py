"""BLIP's objective (Li et al. 2022): ITC, ITM and LM on one image-text model."""
