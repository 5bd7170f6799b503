"""Base models: the embedded one, local directories, and 4-bit and 8-bit layers that really run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tasks.prepare_model
from fl import model
from fl.adapter import Tuning, adapter_arrays, attach_adapter
from fl.costs import model_config
from fl.errors import DeviceError, ModelError
from fl.local_models import local_files
from fl.local_training import LocalTraining, train_locally
from fl.model import EMBEDDED, load_model, prepare_model, weights_hash
from storage.stages import Stage, new_stage

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.weights
def test_the_embedded_model_is_the_135m_of_the_paper(smollm2: Path) -> None:
    loaded = load_model(smollm2)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    assert (smollm2 / "model.safetensors").stat().st_size == 538_090_408  # Table 2's 538.09 MB
    card = json.loads((smollm2 / "card.json").read_text())
    assert card["licence"] == "Apache-2.0"
    assert len(card["sha256"]) == 64


@pytest.mark.weights
def test_the_dequantized_model_writes_english(smollm2: Path) -> None:
    from tokenizers import Tokenizer

    loaded = load_model(smollm2)
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.no_grad():
        best = int(loaded.model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"


def test_preparing_again_reuses_the_directory(tiny_model: Path, tmp_path: Path) -> None:
    first = prepare_model(str(tiny_model), tmp_path)
    written = (first / "card.json").stat().st_mtime_ns
    assert prepare_model(str(tiny_model), tmp_path) == first
    assert (first / "card.json").stat().st_mtime_ns == written
    assert load_model(first).end_token_id == 0


def _change_weights(folder: Path) -> None:
    """Other values in the same place, as training in place leaves them: not a byte more or less."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_were_changed_in_their_directory_are_other_weights(tiny_model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "model")
    before = load_model(prepare_model(str(source), tmp_path / "models"))
    first = {name: tensor.clone() for name, tensor in before.model.state_dict().items()}
    _change_weights(source)
    folder = prepare_model(str(source), tmp_path / "models")
    after = load_model(folder)
    assert json.loads((folder / "card.json").read_text())["weights_sha256"] == weights_hash(source)
    assert after.model_hash != before.model_hash
    assert any((tensor != first[name]).any() for name, tensor in after.model.state_dict().items())
    (source / "model.safetensors").rename(source / "other.safetensors")
    assert (prepare_model(str(source), tmp_path / "models") / "other.safetensors").is_file()
    load_model.cache_clear()


def test_stages_of_a_model_that_was_changed_are_not_used_again_and_those_of_one_that_was_touched_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    source = shutil.copytree(tiny_model, tmp_path / "model")

    def staged() -> tuple[str, Stage]:
        inputs = (str(source), local_files(str(source)))
        key = tasks.prepare_model.prepare_model.key(*inputs)
        with new_stage(tmp_path / "stages", "model", key) as new:
            tasks.prepare_model.prepare_model._write(new, *inputs)
        return key, new.done

    key, first = staged()
    again, second = staged()
    assert (again, second.fingerprint) == (key, first.fingerprint)
    os.utime(source / "model.safetensors")
    assert staged()[1].fingerprint == first.fingerprint
    _change_weights(source)
    with pytest.raises(ModelError, match="changed while they were used"):
        tasks.prepare_model.model_folder(first)
    other, second = staged()
    assert other != key and second.fingerprint != first.fingerprint


def test_weights_that_are_not_safetensors_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors"):
        prepare_model(str(pickled), tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_a_model_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=EMBEDDED) as caught:
        prepare_model("nobody/no-such-model", tmp_path)
    assert "\n" not in str(caught.value)


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs: a model's file list, and its files."""

    folder: Path
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        _, _, name = self.path.partition("/resolve/main/")
        name = name or self.path.partition(f"/resolve/{'0' * 40}/")[2]
        if name:
            self.asked.append(name)
            self._send((self.folder / name).read_bytes(), body)
        elif self.path.startswith("/api/models/tiny/llama/tree/"):
            sizes = {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode(), body)
        elif self.path.startswith("/api/models/tiny/llama"):
            files = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            self._send(json.dumps({"id": "tiny/llama", "sha": "0" * 40, "siblings": files}).encode(), body)
        else:
            self.send_error(404)

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def _hub(folder: Path) -> Iterator[Callable[[Path], subprocess.CompletedProcess[str]]]:
    """A hub that has the model in a folder; gives what prepares it into another, in a process of its own.

    The hub's address is read when its library is imported.
    """
    _Hub.folder = folder
    _Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ask = "import pathlib, sys, fl.model; fl.model.prepare_model('tiny/llama', pathlib.Path(sys.argv[1]))"

    def prepare(models: Path) -> subprocess.CompletedProcess[str]:
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = {**os.environ, **hub, "HF_HOME": str(models.with_name("cache")), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", ask, str(models)]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)

    try:
        yield prepare
    finally:
        server.shutdown()


def test_a_model_is_downloaded_from_a_hub_without_its_pickles(tiny_model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "hub")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    with _hub(source) as prepare:
        assert prepare(tmp_path / "models").returncode == 0
    [folder] = (tmp_path / "models").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert json.loads((folder / "card.json").read_text())["source"] == "huggingface.co/tiny/llama"
    assert "pytorch_model.bin" not in _Hub.asked
    load_model.cache_clear()
    assert load_model(folder).end_token_id == 0


def test_a_model_of_a_hub_without_a_fast_tokenizer_is_refused_as_one_in_a_directory_is(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "hub")
    (source / "tokenizer.json").unlink()
    with _hub(source) as prepare:
        told = prepare(tmp_path / "models").stderr.splitlines()[-1]
    assert "ModelError" in told and "has no tokenizer.json" in told
    assert not list((tmp_path / "models").iterdir())
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
        prepare_model(str(source), tmp_path / "models")


def test_a_folder_without_a_model_and_an_unknown_quantization_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="auto, none, int8 or nf4"):
        load_model(tiny_model, "int3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_configuration_that_names_code_brings_none_and_asks_nobody(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of", "auto_map": names}))
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")

    def asked(*_: object) -> str:
        ran.touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    for use in (load_model, model_config):
        with pytest.raises(ModelError):
            use(folder)
    assert not ran.exists()


def test_a_cuda_device_that_is_not_there_is_named(tiny_model: Path) -> None:
    with pytest.raises(DeviceError, match="No CUDA device"):
        load_model(tiny_model, device="cuda")


def test_the_device_decides_and_says_why(tiny_model: Path) -> None:
    loaded = load_model(tiny_model, "auto")
    assert set(loaded.reasons) == {"dtype", "quantization", "attention"}
    if loaded.device == "cpu":
        assert (loaded.dtype, loaded.quantization) == ("float32", "none")


def test_quantization_follows_from_the_device_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: dict[str, str] = {}
    assert model._quantization("auto", "cuda", reasons) == "nf4"
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda _: None)
    assert model._quantization("auto", "cuda", reasons) == "none"
    assert "not installed" in reasons["quantization"]
    with pytest.raises(DeviceError, match="bitsandbytes"):
        model._quantization("nf4", "cuda", reasons)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_adapters_train_on_quantized_weights_on_this_device(tiny_model: Path, quantization: str) -> None:
    load_model.cache_clear()
    loaded = load_model(tiny_model, quantization)
    kinds = {type(module).__name__ for module in loaded.model.modules()}
    assert ("Linear4bit" if quantization == "nf4" else "Linear8bitLt") in kinds
    model = attach_adapter(loaded, Tuning(dropout=0.0), seed=1)
    before = adapter_arrays(model)
    windows = [np.arange(1, 30), np.arange(1, 40)]
    result = train_locally(model, loaded, windows, LocalTraining(steps=2, batch_size=2), 1e-2, (0, 1, 0))
    assert np.isfinite(result.loss)
    assert any((after != before[name]).any() for name, after in adapter_arrays(model).items())
    with pytest.raises(ModelError, match="unquantized"):
        attach_adapter(loaded, Tuning(kind="full"), seed=1)
    load_model.cache_clear()
