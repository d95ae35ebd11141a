"""capfilt: BLIP's CapFilt, open and complete: noisy image-text pairs in, a bootstrapped dataset out."""

__version__ = "0.1.0"
