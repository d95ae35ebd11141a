"""Download images from untrusted servers: address checks, limits and politeness below img2dataset's downloader."""
