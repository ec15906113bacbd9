"""Tests of the benchmarks: what they compute from what they measure."""
