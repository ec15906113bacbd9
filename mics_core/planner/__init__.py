"""The planner: how many parameters, how much memory, which layouts fit, and which one to take.

Everything here is pure arithmetic on plain numbers: standard library only, no torch, no Ray, no
clock. Every decision carries one sentence of reason.
"""
