"""What the benchmarks share: emulated nodes, worlds of worker processes, and the results' files."""
