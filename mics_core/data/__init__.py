"""Data: which sample is used when (`order`), where samples come from, and how they are batched.

Nothing here imports torch: samples and batches are numpy arrays, which the engine converts. This
file imports nothing at all, so that `mics_core.data.order` stays usable from the pure layers.
"""
