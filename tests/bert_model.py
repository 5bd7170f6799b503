"""A BERT so small that a test can tune it."""

from pathlib import Path

MESSAGES = {
    0: "Receiving block blk_<*> src: /<*> dest: /<*>",
    1: "PacketResponder <*> for block blk_<*> terminating",
    2: "Verification succeeded for blk_<*>",
    3: "Deleting block blk_<*> file <*>",
}
"""What it can spell, by message id."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tiny_bert(folder: Path) -> Path:
    """Two layers of 32 with seeded random weights, 64 positions, and a word-piece tokenizer, in a local directory."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator(
        list(MESSAGES.values()) * 9, vocab_size=300, special_tokens=SPECIAL, show_progress=False
    )
    BertTokenizerFast(tokenizer_object=trained._tokenizer, do_lower_case=False).save_pretrained(folder)
    config = BertConfig(
        vocab_size=trained.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder
