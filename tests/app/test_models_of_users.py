"""Networks whose outputs cannot be trained are refused before a run folder is made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import command
from tests.data.conftest import tiny as tiny


class Net(nn.Module):
    """Ten outputs, changed by a function."""

    def __init__(self, change) -> None:
        super().__init__()
        self.conv, self.dense, self.change = nn.Conv2d(1, 4, 3), nn.Linear(4, 10), change

    def forward(self, images):
        return self.change(self.dense(self.conv(images).mean(dim=(2, 3))))


CHANGES = {
    "dictionary": lambda outputs: {"logits": outputs},
    "pair": lambda outputs: (outputs, outputs),
    "nothing": lambda outputs: None,
    "image": lambda outputs: outputs[:, :, None, None],
    "few": lambda outputs: outputs[:, :9],
    "one": lambda outputs: outputs.mean(),
    "mixed": lambda outputs: outputs.repeat(2, 1),
    "classes": lambda outputs: nn.functional.one_hot(outputs.argmax(1), 10),
    "more": lambda outputs: torch.cat([outputs, outputs], 1),
}


def network(change: str) -> nn.Module:
    return Net(CHANGES[change])


def run(tmp_path, change: str):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        f"_target_: tests.app.test_models_of_users.network\n_partial_: true\nchange: {change}\n"
    )
    few = ("train.steps=2", "metrics.every=1", "train.steps_per_epoch=2", "logger=none")
    return command(f"--config-dir={tmp_path / 'conf'}", "model=mine", *few, f"hydra.run.dir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("change", "returned"),
    [("dictionary", "dict"), ("pair", "tuple"), ("nothing", "NoneType"), ("image", "Tensor of shape 2x10x1x1"),
     ("few", "Tensor of shape 2x9"), ("one", "Tensor of shape "), ("mixed", "Tensor of shape 4x10"),
     ("classes", "Tensor of shape 2x10")],
)  # fmt: skip
def test_outputs_that_are_no_scores_of_classes(tmp_path, change, returned):
    done = run(tmp_path, change)
    message = "in training it must return a tensor of images x 10 classes, not"
    assert done.code == 2
    assert done.err == f"qat-run: model: cannot be built for images of 1x8x8: {message} {returned.strip()}\n"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_network_of_more_classes_trains(tmp_path):
    done = run(tmp_path, "more")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_an_image_that_is_too_small_is_refused_by_the_networks_name(tiny, tmp_path):
    arguments = ("dataset=imagenet", "dataset.image_size=32", "dataset.workers=0", f"paths.data={tiny}",
                 "train.batch_size=4", "logger=none", "model=torchvision", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    done = command(*arguments, "model.name=inception_v3")
    assert done.code == 2
    assert done.err.startswith("qat-run: model.name=inception_v3: cannot be built for images of 3x32x32: Calculated ")
    assert done.err.count("\n") == 1
    assert command(*arguments, "model.name=googlenet", "dry_run=true").code == 0
