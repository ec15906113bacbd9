"""The `mics` command line. Starts without torch and Ray, which single commands load as they run."""
