"""Objectives: what a model is trained for. One file or folder per objective; `base.py` says what the loop asks."""
