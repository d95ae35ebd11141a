"""Warm start of a small BLIP in four steps: its towers learn from two teachers before they are trained on pairs.

1. `teacher_targets.py` stores crops of images with EfficientNet-Lite0's features of them.
2. `joint.py` trains a space in which EfficientNet-Lite0 and MiniLM agree.
3. `distill.py` teaches both to a small ViT.
4. `text.py` teaches MiniLM's embeddings to a small text encoder.
"""
