"""Strangers' bytes and words: images, texts, block lists."""
