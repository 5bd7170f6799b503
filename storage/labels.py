"""Labels of windows: a file of keys with labels, as the official archives bring it."""

from pathlib import Path

import polars as pl

from storage.errors import FormatError, SourceError

_VALUES = {
    "normal": 0, "anomaly": 1, "anomalous": 1, "abnormal": 1, "0": 0, "1": 1, "false": 0, "true": 1, "-": 0, "": None,
}  # fmt: skip


def read_labels(path: Path) -> pl.DataFrame:
    """The labels of a CSV file (columns key, label, kind): its first column is the key, its second the label.

    A column `Kind` names the kind of anomaly. Raises SourceError where it cannot be read, and FormatError where
    it does not have that form or contradicts itself.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except OSError as error:
        raise SourceError(f"Cannot read the labels {path.name}: {_first_line(error)}; check the path.") from error
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path.name} is not a CSV file of keys and labels: {_first_line(error)}.") from error
    if table.width < 2:
        raise FormatError(f"{path.name} has one column; it needs a header and two columns, key and label.")
    kinds = [name for name in table.columns[2:] if name.strip().lower() == "kind"]
    labels = table.select(
        key=pl.nth(0).fill_null("").str.strip_chars(),
        word=pl.nth(1).fill_null("").str.strip_chars(),
        kind=pl.col(kinds[0]).replace("", None) if kinds else pl.lit(None, pl.String),
    )
    return _one_label_a_key(_with_values(labels, path), path)


def _with_values(labels: pl.DataFrame, path: Path) -> pl.DataFrame:
    words = labels["word"].unique(maintain_order=True)
    unknown = [word for word in words if word.lower() not in _VALUES]
    if unknown:
        raise FormatError(
            f"{path.name} holds the label {unknown[0][:40]!r}; known are Normal and Anomaly, 0 and 1, false and true."
        )
    values = pl.Series([_VALUES[word.lower()] for word in words], dtype=pl.Int8)
    return labels.select("key", label=pl.col("word").replace_strict(words, values, return_dtype=pl.Int8), kind="kind")


def _one_label_a_key(labels: pl.DataFrame, path: Path) -> pl.DataFrame:
    distinct = labels.drop_nulls("label").unique(["key", "label"], maintain_order=True)
    twice = int(distinct["key"].is_duplicated().sum())
    if twice:
        raise FormatError(f"{path.name} calls {twice // 2} keys both normal and anomalous; keep one label a key.")
    return distinct


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]
