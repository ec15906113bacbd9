"""Weak scaling with emulated compute: more partition groups, each with the same work."""
