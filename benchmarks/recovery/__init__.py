"""What a fault costs those who survive it: `python -m benchmarks.recovery`."""
