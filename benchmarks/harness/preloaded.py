"""What the server of `benchmarks.harness.processes` imports before it forks."""

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
