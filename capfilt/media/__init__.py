"""Untrusted images and texts: decoding, clean-up, block lists."""
