"""Process groups and collectives: inside a partition group, and across partition groups."""
