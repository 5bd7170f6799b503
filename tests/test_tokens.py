"""Tokens: a window's equal the tokens of its joined text, and every distinct sequence is there once."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from benchmarks.tiny_model import save_tiny_tokenizer
from fl.prefix_tree import build_tree
from storage.archives import fetch
from storage.composer import Composer, Tokens, load_tokenizer
from storage.datasets import BGL, HDFS, DatasetConfig, DatasetSpec
from storage.errors import SourceError
from storage.log_formats import LogFormat
from storage.masks import MaskRule, MaskRules, mask_log
from storage.tokens import TokenRule, sequence_table, tokenize_windows
from storage.windows import WindowRule, window_log

_PLAIN = DatasetSpec(
    name="plain",
    raw_name="plain.log",
    log_format=LogFormat(notation="<Key>: <Content>"),
    window=WindowRule(kind="session", key=".+", key_field="Key"),
    mask=MaskRules(preset="none"),
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def across_joints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that merges across the separator, so that a window's tokens are not its messages' tokens in a row."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        ["up ;-; down ;-; up"] * 50,
        trainers.BpeTrainer(vocab_size=60, show_progress=False, initial_alphabet=list("abcdefghijklmnopqrstuvwxyz ;-")),
    )
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def _prepared(raw: Path, spec: DatasetSpec, tokenizer: Path, rule: TokenRule) -> tuple[dict[str, Any], Path]:
    """Through window, mask and tokenize; gives the counts and the last stage's folder."""
    window, mask, tokens = (raw.parent / name for name in ("window", "mask", "tokens"))
    for folder in (window, mask, tokens):
        folder.mkdir()
    window_log(raw, spec, spec.window, None, window)
    mask_log(raw, window, spec, spec.mask, mask)
    return tokenize_windows(window, mask, tokenizer, rule, tokens), tokens


def _check_against_joined_text(folder: Path, tokenizer_file: Path, rule: TokenRule) -> None:
    """Every distinct sequence: ids, starts, hash and truncation, from the joined text alone."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    texts = pl.read_parquet(folder / "messages.parquet")["text"].to_list()
    for row in pl.read_parquet(folder / "sequences.parquet").iter_rows(named=True):
        read = [texts[message].replace("<*>", rule.field) for message in row["message_ids"]]
        joined = rule.separator.join(read)
        encoding = tokenizer.encode(joined, add_special_tokens=False)
        assert row["token_ids"] == encoding.ids[: rule.max_tokens]
        assert row["n_tokens"] == len(row["token_ids"])
        assert row["truncated"] == (len(encoding.ids) > rule.max_tokens)
        packed = struct.pack(f"<{row['n_tokens']}I", *row["token_ids"])
        assert row["sequence_hash"] == hashlib.blake2b(packed, digest_size=16).hexdigest()
        lengths = [len(text) + len(rule.separator) for text in read]
        begins = [max(sum(lengths[:n]) - 1, 0) for n in range(len(lengths))]  # the blank before it is a message's own
        ends = [end for _, end in encoding.offsets]
        starts = [next(n for n, end in enumerate(ends) if end > begin) for begin in begins]
        assert row["message_starts"] == [start for start in starts if start < rule.max_tokens]


@pytest.mark.real_logs
@pytest.mark.weights
def test_real_windows_have_the_tokens_of_their_joined_text(hdfs_archive: Path, smollm2: Path, tmp_path: Path) -> None:
    fetch(DatasetConfig(name="hdfs", source=str(hdfs_archive)), HDFS, tmp_path, tmp_path)
    rule = TokenRule()
    counts, folder = _prepared(tmp_path / "HDFS.log", HDFS, smollm2 / "tokenizer.json", rule)
    assert counts["composed"]
    assert (counts["windows"], counts["distinct_sequences"], counts["messages"]) == (11_501, 1_534, 34)
    assert round(counts["tokens"] / 1e6, 2) == 5.87
    _check_against_joined_text(folder, smollm2 / "tokenizer.json", rule)


@pytest.mark.real_logs
def test_bgl_windows_have_the_tokens_of_their_joined_text(bgl_archive: Path, byte_level: Path, tmp_path: Path) -> None:
    fetch(DatasetConfig(name="bgl", source=str(bgl_archive)), BGL, tmp_path, tmp_path)
    rule = TokenRule(max_tokens=300)
    counts, folder = _prepared(tmp_path / "BGL.log", BGL, byte_level, rule)
    assert counts["composed"]
    assert counts["truncated_windows"] > 0
    _check_against_joined_text(folder, byte_level, rule)


def test_a_tokenizer_that_merges_across_joints_reads_whole_windows(across_joints: Path, tmp_path: Path) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: up\na: down\na: up\nb: down\na: up\nb: down\n")
    for most in (1024, 4):
        rule = TokenRule(max_tokens=most)
        place = tmp_path / str(most)
        place.mkdir()
        (place / "plain.log").write_bytes(raw.read_bytes())
        counts, folder = _prepared(place / "plain.log", _PLAIN, across_joints, rule)
        assert not counts["composed"]
        _check_against_joined_text(folder, across_joints, rule)


@settings(deadline=None, max_examples=100)
@given(
    texts=st.lists(st.text(st.sampled_from("ab ;-<*>1.é\t"), max_size=10), min_size=1, max_size=4, unique=True),
    order=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    separator=st.sampled_from([" ;-; ", "\n", " | ", ";"]),
    field=st.sampled_from(["<*>", "#", " x", "a;"]),
)
def test_composed_tokens_are_used_only_where_they_agree(
    texts: list[str], order: list[int], separator: str, field: str, byte_level: Path
) -> None:
    tokenizer = load_tokenizer(byte_level)
    sequence = np.array([number % len(texts) for number in order], dtype=np.uint32)
    composer = Composer(tokenizer, TokenRule(separator=separator, field=field), texts)
    read = [texts[number].replace("<*>", field) for number in sequence]
    expected = tokenizer.encode(separator.join(read), add_special_tokens=False).ids
    assert composer.whole(sequence.tolist()).ids.tolist() == expected
    if composer.agrees([sequence]):
        assert composer.compose(sequence.tolist()).ids.tolist() == expected


@pytest.mark.parametrize("separator", [" ;-; ", "\n", " ", ""])
def test_every_window_has_tokens_and_those_that_have_text_the_tokens_of_their_text(
    separator: str, byte_level: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: up\nb: \nc: 17\nd: \nd: up\ne: \ne: \n")
    spec = _PLAIN.model_copy(
        update={"mask": MaskRules(preset="custom", rules=(MaskRule(pattern="[0-9]+", replacement=""),))}
    )
    rule = TokenRule(separator=separator)
    _, folder = _prepared(raw, spec, byte_level, rule)
    windows = pl.read_parquet(folder / "windows.parquet")
    texts = pl.read_parquet(folder / "messages.parquet")["text"].to_list()
    tokens = pl.read_parquet(folder / "sequences.parquet")["token_ids"]
    assert windows["key"].to_list() == ["a", "b", "c", "d", "e"]
    for messages, sequence in windows.select("message_ids", "sequence_id").iter_rows():
        joined = separator.join(texts[message] for message in messages)
        ids = load_tokenizer(byte_level).encode(joined, add_special_tokens=False).ids
        assert tokens[sequence].to_list() == ids if ids else len(tokens[sequence]) > 0
    # A detector reads each window beside others: the same tokens.
    for messages, sequence in windows.select("message_ids", "sequence_id").iter_rows():
        alone, _ = Composer(load_tokenizer(byte_level), rule, texts).tokens_of([np.array(messages, np.uint32)])
        assert alone[0].ids.tolist() == tokens[sequence].to_list()
    assert build_tree([each.to_numpy() for each in tokens], 0).paths


def test_a_model_reads_another_text_for_fields_and_everybody_else_the_masks(byte_level: Path, tmp_path: Path) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: took 12 of 34\nb: took 5 of 678\na: rest 9\n")
    spec = _PLAIN.model_copy(update={"mask": MaskRules(preset="numbers")})
    rule = TokenRule(field="#")
    _, folder = _prepared(raw, spec, byte_level, rule)
    assert pl.read_parquet(folder / "messages.parquet")["text"].to_list() == ["took <*> of <*>", "rest <*>"]
    _check_against_joined_text(folder, byte_level, rule)
    first = pl.read_parquet(folder / "sequences.parquet")["token_ids"][0].to_list()
    assert load_tokenizer(byte_level).decode(first) == "took # of # ;-; rest #"


def test_windows_name_their_sequence_and_messages(byte_level: Path, tmp_path: Path) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: up\nb: up\na: down\nb: down\nc: up\n")
    counts, folder = _prepared(raw, _PLAIN, byte_level, TokenRule())
    windows = pl.read_parquet(folder / "windows.parquet")
    sequences = pl.read_parquet(folder / "sequences.parquet")
    assert windows["key"].to_list() == ["a", "b", "c"]
    assert windows["sequence_id"].to_list() == [0, 0, 1]
    assert windows["message_ids"].to_list() == [[0, 1], [0, 1], [0]]
    assert sequences["windows"].to_list() == [2, 1]
    assert windows["sequence_hash"].to_list() == sequences["sequence_hash"].gather([0, 0, 1]).to_list()
    assert counts["tokens"] == windows["n_tokens"].sum()


def test_message_tokens_are_those_of_the_message_first_and_after_a_blank(byte_level: Path, tmp_path: Path) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: Receiving block\na: x\n")
    _, folder = _prepared(raw, _PLAIN, byte_level, TokenRule())
    tokenizer = Tokenizer.from_file(str(byte_level))
    for row in pl.read_parquet(folder / "messages.parquet").iter_rows(named=True):
        assert row["first_tokens"] == tokenizer.encode(row["text"], add_special_tokens=False).ids
        assert row["next_tokens"] == tokenizer.encode(f" {row['text']}", add_special_tokens=False).ids


def test_a_window_of_many_messages_is_cut_and_counted(byte_level: Path, tmp_path: Path) -> None:
    raw = tmp_path / "plain.log"
    raw.write_text("a: something happens here\n" * 300 + "b: short\n")
    rule = TokenRule(max_tokens=64)
    counts, folder = _prepared(raw, _PLAIN, byte_level, rule)
    assert counts["truncated_windows"] == 1
    _check_against_joined_text(folder, byte_level, rule)


def test_a_tokenizer_that_adds_special_tokens_adds_none_here(byte_level: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(byte_level))
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.enable_truncation(2)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    raw = tmp_path / "plain.log"
    raw.write_text("a: Receiving block\n")
    _, folder = _prepared(raw, _PLAIN, file, TokenRule())
    assert pl.read_parquet(folder / "sequences.parquet")["token_ids"].to_list() == [
        Tokenizer.from_file(str(byte_level)).encode("Receiving block", add_special_tokens=False).ids
    ]


def test_a_damaged_tokenizer_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(SourceError, match="Cannot read the tokenizer") as told:
        load_tokenizer(file)
    assert "\n" not in str(told.value)


def test_sequences_of_one_length_are_lists_like_all_others() -> None:
    """Count windows have as many messages each; Polars takes lists of one length for another type."""
    sequences = [np.array(ids, np.uint32) for ids in ([1, 2], [3, 4])]
    tokens = [Tokens(np.array([5, 6], np.uint32), np.array([0, 1], np.uint32), truncated=False)] * 2
    table = sequence_table(sequences, tokens, np.array([0, 1], np.uint32))
    for name in ("message_ids", "token_ids", "message_starts"):
        assert table.schema[name] == pl.List(pl.UInt32)
    assert table["message_ids"].to_list() == [[1, 2], [3, 4]]
