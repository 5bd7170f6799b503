"""Adapters in the base weights: the same scores without PEFT, and files that PEFT itself reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl.adapter import Arrays, adapter_arrays, attach_adapter, load_adapter_arrays
from fl.errors import ModelError
from fl.hyperparameters import Tuning
from fl.merging import export_adapter, merge_adapter
from fl.model import load_model, prepare_model, weights_hash
from fl.scoring import score_sequences

WINDOWS = [np.random.default_rng(seed).integers(1, 500, 40 + seed).astype(np.uint32) for seed in range(4)]
STARTS = [np.array([0, 10, 20], np.uint32)] * 4
KINDS = [Tuning(rank=4), Tuning(kind="ffa", rank=4, alpha=3), Tuning(kind="sb", rank=4), Tuning(kind="full")]


def _trained(folder: Path, tuning: Tuning) -> tuple[Arrays, dict[str, np.ndarray], torch.Tensor]:
    """An adapter with something in it, and the scores and logits that it gives."""
    load_model.cache_clear()
    loaded = load_model(folder)
    model = attach_adapter(loaded, tuning, 5)
    generator = np.random.default_rng(0)
    arrays = {n: a + generator.normal(0, 0.1, a.shape).astype(np.float32) for n, a in adapter_arrays(model).items()}
    load_adapter_arrays(model, arrays)
    scores = score_sequences(model, loaded, WINDOWS, STARTS)
    with torch.no_grad():
        return arrays, scores, model(torch.arange(1, 30)[None]).logits


@pytest.mark.parametrize("tuning", KINDS, ids=lambda tuning: tuning.kind)
def test_merged_weights_give_the_scores_of_the_adapter(tiny_model: Path, tmp_path: Path, tuning: Tuning) -> None:
    base = prepare_model(str(tiny_model), tmp_path / "models")
    before = weights_hash(base)
    arrays, expected, logits = _trained(base, tuning)
    into = merge_adapter(base, arrays, tuning, 5, tmp_path / "merged")
    load_model.cache_clear()
    # As any other local model: prepared, loaded, no adapter.
    loaded = load_model(prepare_model(str(into), tmp_path / "models"))
    found = score_sequences(loaded.model, loaded, WINDOWS, STARTS)
    for name in ("mean_token", "max_token", "mean_message", "max_message", "loss_sum"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(torch.arange(1, 30)[None]).logits, logits, atol=1e-4, rtol=1e-4)
    assert weights_hash(base) == before != weights_hash(into)


@pytest.mark.parametrize("tuning", KINDS[:3], ids=lambda tuning: tuning.kind)
def test_peft_reads_an_exported_adapter_and_merges_it_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, tuning: Tuning
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    arrays, _, logits = _trained(tiny_model, tuning)
    export_adapter(tiny_model, arrays, tuning, 5, tmp_path / "adapter")
    merged = merge_adapter(tiny_model, arrays, tuning, 5, tmp_path / "merged")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(1, 30)[None]).logits, logits, atol=1e-4, rtol=1e-4)
    expected = model.merge_and_unload().state_dict()
    for name, tensor in load_file(merged / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


def test_what_cannot_be_written_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    arrays, *_ = _trained(tiny_model, Tuning(rank=4))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ModelError, match="already"):
        merge_adapter(tiny_model, arrays, Tuning(rank=4), 5, tmp_path / "taken")
    with pytest.raises(ModelError, match="does not fit"):
        merge_adapter(tiny_model, arrays, Tuning(rank=2), 5, tmp_path / "wrong")
    with pytest.raises(ModelError, match="--merged"):
        export_adapter(tiny_model, {}, Tuning(kind="none"), 5, tmp_path / "nothing")
