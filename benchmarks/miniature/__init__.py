"""Runs in miniature: the real machine and the real engine in processes, without Ray."""
