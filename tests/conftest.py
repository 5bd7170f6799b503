"""What tests share: a tiny model, the real logs where they are, and the embedded model's weights."""

import json
import os
from pathlib import Path

import pytest

# Before anything imports prefect, mlflow or flwr.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Before anything imports torch: on a busy machine, threads that spin for long take the cores from the others.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

REPOSITORY = Path(__file__).resolve().parent.parent
_LINES = [
    "Receiving block blk_<*> src: /<*> dest: /<*>",
    "PacketResponder <*> for block blk_<*> terminating",
    "BLOCK* NameSystem.addStoredBlock: blockMap updated: <*> is added to blk_<*> size <*>",
    "Verification succeeded for blk_<*> ;-; Deleting block blk_<*> file <*>",
]


def _real_logs(archive: str) -> Path:
    folder = Path(os.environ.get("ATALAIA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / archive
    if not path.is_file():
        if os.environ.get("ATALAIA_REQUIRE_REAL_LOGS"):
            pytest.fail(f"the real logs must be here, but {path} is not")
        pytest.skip(f"the real logs are not here ({path}); name their folder in ATALAIA_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def hdfs_archive() -> Path:
    """The 2 % sample of HDFS_v1, as an archive of the official layout."""
    return _real_logs("hdfs_2pct/HDFS_1.tar.gz")


@pytest.fixture(scope="session")
def bgl_archive() -> Path:
    """The first 100,000 lines of BGL, as an archive of the official layout."""
    return _real_logs("bgl_100k/BGL.tar.gz")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded SmolLM2-135M as a local directory, dequantized once for the whole test run."""
    from fl.model import EMBEDDED, prepare_model

    return prepare_model(EMBEDDED, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with seeded random weights and a byte-level tokenizer trained on a few lines."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


def save_tiny_model(folder: Path) -> None:
    """A two-layer Llama as `tiny_model` is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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
