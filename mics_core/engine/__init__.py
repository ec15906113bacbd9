"""The training engine: FSDP2 inside a partition group and a second hop across; knows no ray."""
