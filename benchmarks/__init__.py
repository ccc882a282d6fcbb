"""Measurements: `python -m benchmarks.run` for one collective, `benchmarks.compare` against lax."""
