"""The `mics` command line. Imports neither torch nor Ray; only `mics serve` loads the service."""
