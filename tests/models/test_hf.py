"""Causal language models of transformers, made from tiny configurations."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from qat_ste import ArgumentError, Quantization, quantize_weights, quantized_tensors
from qat_ste.estimators import Ste
from qat_ste.models import hf, with_linear_layers

pytestmark = pytest.mark.slow  # transformers take seconds to import, and come with the extra `hf`
SMALL = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
LAYERS = Quantization(include=["Linear"], exclude=["*lm_head"], scale="absmax", granularity="channel")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers (the extra hf)")


@pytest.fixture
def llama(transformers):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**SMALL, **size, num_key_value_heads=1, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def gpt2(transformers):
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    )


def saved(model: nn.Module, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


def names(model: nn.Module) -> list[str]:
    return [name for name, _, _ in quantized_tensors(quantize_weights(model, LAYERS, Ste()))]


def test_llama_like(llama, tmp_path):
    model = hf(saved(llama, tmp_path), context=16, num_classes=256)
    tokens = torch.randint(256, (2, 16))
    assert torch.equal(model.eval()(tokens), llama.eval()(tokens).logits)
    kinds = [f"self_attn.{kind}_proj" for kind in "qkvo"] + [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
    assert names(model) == [f"network.model.layers.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds]


def test_gpt2_like_whose_weights_are_stored_transposed(gpt2, tmp_path):
    model = hf(saved(gpt2, tmp_path), context=16, num_classes=256)
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(model.eval()(tokens), gpt2.eval()(tokens).logits)
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names(model) == [f"network.transformer.h.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds]
    (_, weight, fake_quantize), *_ = quantized_tensors(model)
    original = gpt2.transformer.h[0].attn.c_attn.weight
    assert weight.shape == (96, 32) == original.T.shape
    assert torch.equal(fake_quantize.quantizer.max.flatten(), original.abs().amax(0)), "one scale an output"


def test_transposed_weights_are_refused_where_the_first_dimension_counts(gpt2):
    for settings, argument in (
        ({"granularity": "channel", "scale": "absmax"}, "granularity must be tensor"),
        ({"rotation": 32, "scale": "absmax"}, "rotation must be None"),
        ({"scale": "he"}, "scale must be one that does not depend"),
    ):
        with pytest.raises(ArgumentError, match=rf"{argument}.*c_attn.weight.*with_linear_layers"):
            quantize_weights(gpt2, Quantization(include=["Conv1D"], **settings), Ste())
    model = quantize_weights(gpt2, Quantization(include=["Conv1D"], scale="absmax"), Ste())
    assert len(list(quantized_tensors(model))) == 8


def test_what_cannot_be_used_is_refused(llama, tmp_path):
    folder = saved(llama, tmp_path / "model")
    for arguments, message in (
        ({"num_classes": 300}, "at least 300 tokens"),
        ({"context": 65}, "windows of 65 tokens; this one takes 64"),
    ):
        with pytest.raises(ArgumentError, match=message):
            hf(folder, **{"context": 16, "num_classes": 256} | arguments)
    with pytest.raises(ArgumentError, match="path must be a folder with the config.json"):
        hf(tmp_path / "nowhere")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ArgumentError, match="missing keys: model.layers.2"):
        hf(folder)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArgumentError, match="a folder with a causal language model"):
        hf(folder)


def test_other_modules_stay_as_they_are(llama):
    before = [id(module) for module in llama.modules()]
    assert [id(module) for module in with_linear_layers(llama).modules()] == before


def test_a_run_is_not_continued_from_other_weights(gpt2, transformers, tmp_path, qat_run):
    few = (
        "train.steps=4",
        "train.batch_size=4",
        "dataset.validation_tokens=512",
        "logger=none",
        "checkpoint.every_steps=1",
    )
    arguments = ("dataset=text", "model=hf", f"model.path={saved(gpt2, tmp_path / 'model')}", "optimizer=adamw", *few)
    done = qat_run(*arguments)
    assert done.code == 0, done.err
    assert "start: accuracy" in done.out, "what quantization does to it is told"
    (done.folder / "results.json").unlink()
    (done.folder / "status.json").unlink()
    saved(transformers.GPT2LMHeadModel(gpt2.config), tmp_path / "model")
    other = qat_run(*arguments)
    assert other.code == 2
    assert "model.path.sha256" in other.err


def test_the_command_trains_it(gpt2, tmp_path, qat_run):
    folder = saved(gpt2, tmp_path / "model")
    few = ("train.steps=4", "train.batch_size=4", "metrics.every=2", "dataset.validation_tokens=512", "logger=none")
    done = qat_run("dataset=text", "model=hf", f"model.path={folder}", "optimizer=adamw", *few)
    assert done.code == 0, done.err
    assert "Loading" not in done.err, "no progress bar of transformers"
    assert done.read("results.json")["quantized_weights"] == 2 * 12 * 32**2
    refused = qat_run("dataset=text", "model=hf", f"model.path={tmp_path}/nowhere", "optimizer=adamw", folder="b")
    assert refused.code == 2
    assert "model.path" in refused.err
