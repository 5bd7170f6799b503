"""Prepared data without a flow: a simulated log, windowed, masked, tokenized and split, as stages of a home."""

from pathlib import Path

import polars as pl

from fl.model import prepare_model
from storage.datasets import HDFS_SIM
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.masks import MaskRules, mask_log
from storage.stages import Stage, new_stage
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import window_log


def prepared_stages(home: Layout, model: Path, blocks: int, tokens: TokenRule) -> dict[str, Stage]:
    """The stages by their name in a run: half of the windows for validation, half for calibration, none labelled."""
    spec = HDFS_SIM.model_copy(update={"label_file": None})
    found: dict[str, Stage] = {}
    with new_stage(home.stages, "download", "k") as new:
        generate(new.path, blocks, 0)
    found["download"] = new.done
    raw = new.done.file(spec.raw_name)
    with new_stage(home.stages, "window", "k") as new:
        window_log(raw, spec, spec.window, None, new.path)
    found["window"] = new.done
    with new_stage(home.stages, "mask", "k") as new:
        mask_log(raw, Path(found["window"].path), spec, MaskRules(preset="hdfs"), new.path)
    found["mask"] = new.done
    tokenizer = prepare_model(str(model), home.models) / "tokenizer.json"
    with new_stage(home.stages, "tokenize", "k") as new:
        tokenize_windows(Path(found["window"].path), Path(found["mask"].path), tokenizer, tokens, new.path)
    found["tokenized"] = new.done
    with new_stage(home.stages, "split", "k") as new:
        ids = pl.read_parquet(found["tokenized"].file("windows.parquet"), columns=["window_id"])
        names = ["validation" if number % 2 else "calibration" for number in range(len(ids))]
        ids.with_columns(pl.Series("split", names)).write_parquet(new.path / "splits.parquet")
    found["split"] = new.done
    found["model"] = Stage("model", "k", "", "weights", {})
    return found
