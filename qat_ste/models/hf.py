"""Causal language models of Hugging Face transformers, from a local folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.files import home_path
from qat_ste.base.text import of_error


class CausalLanguageModel(nn.Module):
    """Tokens (int64, windows x tokens) -> logits (windows x tokens x vocabulary) of a network of transformers.

    Attributes:
        weight_files: SHA-256 of the files that the weights come from, by key; a part of a run's identity.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, weight_files: dict[str, str]) -> None:
        super().__init__()
        self.network, self.weight_files = network, weight_files

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits


def hf(path: str | Path | None = None, context: int = 1, num_classes: int = 1) -> nn.Module:
    """The causal language model that ``save_pretrained`` left in a folder, in float32; nothing is downloaded.

    Weights are read from safetensors alone, and no code of the folder is executed. Layers of type ``Conv1D``, GPT-2's,
    become ``nn.Linear``; see ``with_linear_layers``.

    Args:
        context: tokens of a window; the model has to have room for them.
        num_classes: tokens of the data's vocabulary; the model has to know them.

    Raises:
        ArgumentError: transformers is not installed, the folder holds no such model, weights are missing, or the
            model is too small for the data.
    """
    folder = home_path(path or "")
    if path is None or not (folder / "config.json").is_file():
        raise ArgumentError("path", path, "a folder with the config.json and model.safetensors of a model")
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ArgumentError("path", str(path), "read by transformers (pip install 'qat-ste[hf]')") from error
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what it would warn of is refused below
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a foreign loader may raise anything
        raise ArgumentError("path", str(path), f"a folder with a causal language model ({of_error(error)})") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    network, info = loaded
    problems: dict[str, Any] = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys")}
    for key, names in problems.items():
        if names:
            raise ArgumentError("path", str(path), f"a folder with all weights ({key.replace('_', ' ')}: {names[0]})")
    if network.config.vocab_size < num_classes:
        allowed = (
            f"a model of at least {num_classes} tokens, as the data have; this one has {network.config.vocab_size}"
        )
        raise ArgumentError("path", str(path), allowed)
    longest = getattr(network.config, "max_position_embeddings", None)
    if longest is not None and longest < context:
        raise ArgumentError("path", str(path), f"a model for windows of {context} tokens; this one takes {longest}")
    return with_linear_layers(CausalLanguageModel(network, {"model.path.sha256": _digest(folder)}))


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


@torch.no_grad()
def with_linear_layers(model: nn.Module) -> nn.Module:
    """Replaces layers of type ``Conv1D``, GPT-2's in transformers, by ``nn.Linear`` in place; returns the model.

    Their weights are stored as inputs x outputs, so that the first dimension, which scales by channel follow, counts
    inputs. A linear layer computes the same from the transposed weights.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            parameters = dict(child.named_parameters(recurse=False))
            if type(child).__name__ == "Conv1D" and parameters.keys() == {"weight", "bias"}:
                weight, bias = parameters["weight"], parameters["bias"]
                inputs, outputs = weight.shape
                linear = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias)
                linear.train(child.training)
                setattr(module, name, linear)
    return model
