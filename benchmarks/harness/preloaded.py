"""What the server of `benchmarks.harness.processes` imports before it forks."""

import gc

from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.models.roberta import modeling_roberta

from mics_core.engine import build, loop

__all__ = [
    "build",
    "loop",
    "modeling_bert",
    "modeling_gpt2",
    "modeling_llama",
    "modeling_roberta",
]

# What is loaded is never looked at again, so that forks go on sharing its pages.
gc.collect()
gc.freeze()
