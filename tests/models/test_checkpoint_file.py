"""Checkpoint files of float networks: right ones load bit for bit, each wrong one is refused in one line."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import warnings

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

import qat_ste
from qat_ste import ArgumentError, Quantization, estimators, load_checkpoint, quantize_weights
from qat_ste.models import small_cnn, small_resnet
from qat_ste.models.checkpoint_file import CheckpointFile


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(state, other):
    return list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)


def refused(path, model=None, rename=None):
    """The text of ``allowed``; the model stays as it was."""
    model = model or small_resnet()
    before = state_of(model)
    with pytest.raises(ArgumentError) as raised:
        load_checkpoint(model, path, rename)
    assert same(before, model.state_dict())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 900
    assert (raised.value.name, raised.value.value) == ("checkpoint", str(path))
    return raised.value.allowed


@pytest.fixture
def state():
    torch.manual_seed(7)
    return small_resnet().state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_a_file_of_torch_is_loaded_bit_for_bit(tmp_path, state, key, legacy):
    content = state if key is None else {key: state, "epoch": 3}
    path = saved(tmp_path / "w.pt", content, _use_new_zipfile_serialization=not legacy)
    model = small_resnet()
    assert not same(model.state_dict(), state), "another seed"
    assert load_checkpoint(model, path) is model
    assert same(model.state_dict(), state)
    assert CheckpointFile(str(path)).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_safetensors_file_is_loaded(tmp_path, state, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install 'qat-ste[hf]'")
    path = tmp_path / "w.safetensors"
    safetensors.save_file(state, path)
    assert same(load_checkpoint(small_resnet(), path).state_dict(), state)
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(path).startswith("a complete .safetensors file (")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert refused(path) == "a file of torch.save, since safetensors is missing: pip install 'qat-ste[hf]'"


def test_the_function_is_public_and_expands_the_home_folder(tmp_path, state, monkeypatch):
    saved(tmp_path / "w.pt", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(qat_ste.load_checkpoint(small_resnet(), "~/w.pt").state_dict(), state)


class Creates:
    """Creates a file when a pickle of it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_execute_something_does_not(tmp_path, legacy):
    made = tmp_path / "made"
    path = saved(tmp_path / "w.pt", {"conv.weight": Creates(made)}, _use_new_zipfile_serialization=not legacy)
    text = refused(path)
    assert text.startswith("a state_dict alone: this file refers to posix.mkdir, and loading that can run code; ")
    assert "weights_only" not in text
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "without the refusal it would have been executed"


def damaged(path, state):
    """Wrong files by name, and how the message starts."""
    saved(path / "whole", state)
    saved(path / "old", state, _use_new_zipfile_serialization=False)
    whole, old = (path / "whole").read_bytes(), (path / "old").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    incomplete = "a complete file: this one is truncated or damaged; copy it again"
    other = "a file of torch.save or a .safetensors file: this one is damaged or of another kind"
    return {
        "empty": (b"", "a file with a state_dict: this file is empty"),
        "truncated": (whole[: len(whole) // 2], incomplete),
        "all but one byte": (whole[:-1], incomplete),
        "truncated, old": (old[: len(old) // 2], incomplete),
        "a flipped bit": (bytes(flipped), incomplete),
        "text": (b"hello world\n" * 9, other),
        "a line": (b"version https://git-lfs.github.com/spec/v1\n", other),
        "zeros": (bytes(1000), other),
    }


def test_damaged_files(tmp_path, state):
    for name, (content, text) in damaged(tmp_path, state).items():
        (tmp_path / "w.pt").write_bytes(content)
        assert refused(tmp_path / "w.pt") == text, name


def test_paths_that_are_no_readable_file(tmp_path):
    assert refused(tmp_path / "absent.pt") == "an existing file"
    assert refused("a\0b") == "an existing file"
    assert refused(tmp_path) == "a file, not a folder"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "a regular file"
    assert refused("x" * 300) == "a readable file (File name too long)"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path / "loop") == "an existing file"
    with pytest.raises(ArgumentError, match="^checkpoint must be the path of a file, got 3$"):
        load_checkpoint(small_cnn(), 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission(tmp_path, state):
    saved(tmp_path / "w.pt", state).chmod(0)
    assert refused(tmp_path / "w.pt") == "a readable file (Permission denied)"


def test_contents_that_are_no_state_dict(tmp_path, state):
    def text(content):
        return refused(saved(tmp_path / "w.pt", content))

    code = "and loading that can run code; if you trust it, save its state_dict() instead"
    network = "torch.nn.modules.container.Sequential"
    assert text(small_resnet()) == f"a state_dict alone: this file holds a whole network ({network}), {code}"
    namespace = {"state_dict": state, "args": argparse.Namespace(lr=1)}
    assert text(namespace) == f"a state_dict alone: this file refers to argparse.Namespace, {code}"
    assert text(torch.zeros(3)) == "a file with a state_dict: this file holds a Tensor"
    none = "a file with a state_dict: this file holds no tensors"
    assert text({}) == f"{none}, nothing; save model.state_dict()"
    assert text({"epoch": 3, "net": state}) == f"{none}, only epoch, net; save model.state_dict()"
    several = "a file with one state_dict: this file has state_dict and model; save one of them"
    assert text({"state_dict": state, "model": state}) == several
    assert text({**state, 3: torch.zeros(1)}).endswith("the names of tensors are text, but one is 3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(small_cnn()), tmp_path / "w.pt")
    script = "a state_dict: this file holds a TorchScript network; save its state_dict()"
    assert refused(tmp_path / "w.pt") == script


MEND = "build the network as it was when the file was saved"


def test_keys_that_do_not_fit(tmp_path, state):
    def text(**changes):
        new = {name: value for name, value in {**state, **changes}.items() if value is not None}
        return refused(saved(tmp_path / "w.pt", new)).removeprefix("a checkpoint of this network: ")

    assert text(**{"dense.bias": None}) == f"the file lacks dense.bias (10); {MEND}"
    assert text(**{"head.bias": torch.zeros(3, 4)}) == f"the network lacks head.bias (3x4); {MEND}"
    assert text(epoch=3) == f"the network lacks epoch (int); {MEND}"
    many = text(**{f"head.{n}": torch.zeros(n) for n in range(7)})
    assert many == f"the network lacks head.0 (0), head.1 (1), head.2 (2) and 4 more; {MEND}"
    reshaped = text(**{"dense.weight": torch.zeros(20, 64), "dense.bias": 3})
    assert reshaped == f"in the file dense.weight is 20x64, not 10x64, dense.bias is int, not 10; {MEND}"
    nan = state["dense.bias"].clone()
    nan[3] = float("inf")
    infinite = refused(saved(tmp_path / "w.pt", {**state, "dense.bias": nan}))
    assert infinite == "a file of finite numbers: dense.bias holds NaN or infinity as float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_fewer_bits_are_converted(tmp_path, state, dtype):
    lower = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    loaded = load_checkpoint(small_resnet(), saved(tmp_path / "w.pt", lower)).state_dict()
    assert loaded["conv.weight"].dtype == torch.float32
    assert same(loaded, {name: value.to(state[name].dtype) for name, value in lower.items()})


def test_other_types_are_refused(tmp_path, state):
    for dtype, name in ((torch.float64, "float64"), (torch.int32, "int32"), (torch.complex64, "complex64")):
        text = refused(saved(tmp_path / "w.pt", {**state, "dense.bias": torch.zeros(10, dtype=dtype)}))
        assert text.endswith(f": in the file dense.bias is {name}, not float32; convert it there")
    large = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    large["dense.bias"] = torch.full((10,), 1e30, dtype=torch.bfloat16)
    text = refused(saved(tmp_path / "w.pt", large), small_resnet().half())
    assert text == "a file of finite numbers: dense.bias holds NaN or infinity as float16"
    load_checkpoint(small_resnet(), tmp_path / "w.pt")
    sparse = {**state, "dense.weight": state["dense.weight"].to_sparse()}
    assert refused(saved(tmp_path / "w.pt", sparse)) == "a file of dense tensors: dense.weight is torch.sparse_coo"


def test_a_mask_of_infinities_that_the_network_has_too_is_loaded(tmp_path):
    def masked():
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        return model

    load_checkpoint(masked(), saved(tmp_path / "w.pt", masked().state_dict()))
    assert "mask holds" in refused(saved(tmp_path / "w.pt", {**masked().state_dict(), "mask": torch.full((2, 2), torch.inf)}), masked())  # fmt: skip


def test_files_of_before_batch_norm_counted_its_batches_are_loaded(tmp_path, state):
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert same(load_checkpoint(small_resnet(), saved(tmp_path / "w.pt", old)).state_dict(), state)
    old["dense.bias"] = torch.zeros(3)
    assert "num_batches_tracked" not in refused(saved(tmp_path / "w.pt", old))


def test_names_of_an_older_version_of_a_layer_are_loaded(tmp_path):
    from torchvision.models.vision_transformer import MLPBlock

    model = MLPBlock(4, 8, 0.0)
    old = {"linear_1.weight": torch.ones(8, 4), "linear_1.bias": torch.zeros(8),
           "linear_2.weight": torch.ones(4, 8), "linear_2.bias": torch.zeros(4)}  # fmt: skip
    load_checkpoint(model, saved(tmp_path / "w.pt", old))
    assert torch.equal(model[0].weight, torch.ones(8, 4))


def test_tied_tensors_must_agree(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        return model

    state = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}
    load_checkpoint(tied(), saved(tmp_path / "w.pt", state))
    state["1.weight"] = torch.zeros(2, 2)
    text = refused(saved(tmp_path / "w.pt", state), tied())
    assert text.endswith("0.weight and 1.weight differ, but are one tensor there")


def test_a_quantized_network_is_refused(tmp_path, state):
    model = quantize_weights(small_resnet(), Quantization(), estimators.Tanh())
    text = refused(saved(tmp_path / "w.pt", state), model)
    assert text == "loaded into a float network, before quantize_weights"


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_resnet()


PREFIXES = {
    "module": ("module.", "", 'model.rename={module.: ""}'),
    "compiled": ("_orig_mod.", "", 'model.rename={_orig_mod.: ""}'),
    "model": ("model.", "", 'model.rename={model.: ""}'),
    "both": ("module._orig_mod.", "", 'model.rename={module._orig_mod.: ""}'),
    "in a list": ("0.", "", 'model.rename={0.b: "b", 0.c: "c", 0.d: "d"}'),
    "not representable": ("é.", "", None),
    "added": ("", "net.", 'model.rename={b: "net.b", c: "net.c", d: "net.d"}'),
}


@pytest.mark.parametrize("case", PREFIXES)
@pytest.mark.parametrize("counters", [True, False])
def test_the_override_that_is_named_mends_a_prefix(tmp_path, state, case, counters):
    """The override is parsed by Hydra, as the command does."""
    prefix, added, override = PREFIXES[case]
    kept = {name: value for name, value in state.items() if counters or not name.endswith("num_batches_tracked")}
    path = saved(tmp_path / "w.pt", {prefix + name: value for name, value in kept.items()})
    build = Wrapped if added else small_resnet
    text = refused(path, build())
    what = f"strip the prefix {prefix!r}" if prefix else f"add the prefix {added!r}"
    assert f"; {what} with " in text
    assert text.endswith(f"rename={ ({prefix: added}) }")
    assert same(
        load_checkpoint(build(), path, {prefix: added}).state_dict(), dict(zip(build().state_dict(), state.values()))
    )
    if override is None:
        assert "model.rename" not in text
        return
    (printed,) = re.findall(r"with '(.*)', in Python", text)
    assert printed == override
    rename = OverridesParser.create().parse_override(printed).value()
    assert same(load_checkpoint(build(), path, rename).state_dict(), dict(zip(build().state_dict(), state.values())))


def test_no_override_is_named_that_would_not_mend(tmp_path, state):
    mixed = {("module." if n % 2 else "net.") + name: value for n, (name, value) in enumerate(state.items())}
    assert refused(saved(tmp_path / "w.pt", mixed)).endswith(MEND)
    both = load_checkpoint(small_resnet(), tmp_path / "w.pt", {"module.": "", "net.": ""})
    assert same(both.state_dict(), state)


def test_the_longest_prefix_is_replaced(tmp_path):
    path = saved(tmp_path / "w.pt", {"a.b.weight": torch.ones(1, 1), "a.bias": torch.zeros(1)})
    model = load_checkpoint(nn.Linear(1, 1), path, {"a.": "", "a.b.": ""})
    assert (model.weight.item(), model.bias.item()) == (1, 0)
    assert "the network lacks b.weight (1x1)" in refused(path, nn.Linear(1, 1), {"a.": ""})


@pytest.mark.parametrize(
    ("rename", "allowed"),
    [(3, "a mapping of prefixes"), ({"a": 3}, "a mapping of prefixes"), ({1.5: "a"}, "a mapping of prefixes"),
     ({"conv": "x", "bn": "x"}, "prefixes that keep names apart: ")],
)  # fmt: skip
def test_wrong_renames(tmp_path, rename, allowed):
    path = saved(tmp_path / "w.pt", {"conv.weight": torch.zeros(1), "bn.weight": torch.zeros(1)})
    with pytest.raises(ArgumentError) as raised:
        load_checkpoint(small_cnn(), path, rename)
    assert raised.value.name == "rename"
    assert raised.value.allowed.startswith(allowed)
