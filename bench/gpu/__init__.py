"""Checks and timings on a GPU; `python -m bench.gpu` runs them, bench/gpu.sh all there is."""
