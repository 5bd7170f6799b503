"""A model so small that what is measured, or tested, is everything but the model."""

import json
from pathlib import Path

_LINES = [
    "Receiving block blk_<*> src: /<*> dest: /<*>",
    "PacketResponder <*> for block blk_<*> terminating",
    "BLOCK* NameSystem.addStoredBlock: blockMap updated: <*> is added to blk_<*> size <*>",
    "Verification succeeded for blk_<*> ;-; Deleting block blk_<*> file <*>",
]
"""Messages of HDFS, from which a tokenizer of 512 tokens learns to spell."""


def save_tiny_model(folder: Path) -> Path:
    """A Llama of two layers of 64 with seeded random weights and a byte-level tokenizer, in a local directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"name": "tiny", "source": "seeded random", "licence": "none"}))
    return folder


def save_tiny_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of at most 512 tokens, pre-tokenized like SmolLM's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 8, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )
