"""A user's model: a small GPT-2 that raises when its `Control` says so."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from tests.cluster.control import Control


class FailingModel(transformers.GPT2LMHeadModel):
    """A GPT-2 whose forward asks first whether it is to fail."""

    def __init__(self, config: transformers.GPT2Config, control: Control):
        super().__init__(config)
        self._control = control

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self._control.check_model()
        return super().forward(*arguments, **named)


def build(folder: str, vocabulary: int, sequence_length: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=sequence_length,
        n_embd=66,
        n_layer=2,
        n_head=3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return FailingModel(config, Control(folder))
