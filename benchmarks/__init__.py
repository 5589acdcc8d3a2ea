"""Measurements: the engine against its machine's limits, serving against the engine, us and peers.

`python -m benchmarks.engine|serving|peers`; `docs/benchmarks.md` says what each figure means.
"""
