"""Benchmarks of mics-elastic; `benchmarks/README.md` says what each measures and how to read it."""
