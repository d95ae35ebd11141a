"""Asking strangers' servers for images: the guard, the limits and the manners below img2dataset's downloader."""
