"""Makes a small checkpoint of transformers, in the place of one that you have downloaded.

    python examples/fine-tune/make_checkpoint.py /shared/checkpoint

A GPT-2 with fresh weights, and a tokenizer of this repository's source, as `save_pretrained` writes
them: config.json, model.safetensors, tokenizer.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
END = "<|endoftext|>"


def make_checkpoint(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = (HERE.parents[1] / "mics_core").resolve().rglob("*.py")
    tokenizer.train([str(path) for path in sorted(sources)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint"))
