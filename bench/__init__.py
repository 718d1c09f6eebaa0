"""Timings of whole training steps against other libraries: `python -m bench`."""
