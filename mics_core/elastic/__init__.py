"""Membership of the replication groups: a pure state machine and the plans it announces."""
