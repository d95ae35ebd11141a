"""Objectives: models and their losses. One file or folder per objective; `base.py` is their interface to the loop."""
