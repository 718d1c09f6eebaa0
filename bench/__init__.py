"""Timings of whole training steps against a plain PyTorch loop: `python -m bench`."""
