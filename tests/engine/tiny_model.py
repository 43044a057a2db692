"""Makes a tiny Llama with random weights and its tokenizer, so that a real inference server runs without a download.

    python tiny_model.py DIRECTORY

What it writes is noise; the HTTP, the streaming and the stopping around it are real.
"""

import os
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a source file of the standard library."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with open(os.__file__) as source:
        bpe.train_from_iterator([source.read()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """Two layers, the same weights every time; it never ends by itself."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=131_072,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    model.generation_config.eos_token_id = None
    return model


if __name__ == "__main__":
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(sys.argv[1])
    make_model(len(tokenizer)).save_pretrained(sys.argv[1])
