"""mics-elastic: elastic training of large PyTorch models on Ray, sharded the MiCS way."""

__version__ = "0.1.0"
