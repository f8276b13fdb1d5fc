"""Bad input: one line that names key, value, what is allowed and what mends it; exit code 2; no traceback."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.conftest import SHORT, every_fifth

CASES = [
    ("estimator=tanhh", "estimator=tanhh: no such estimator, allowed are acos, approx_sign, arctan, "),
    ("model=null", "model=null: no such model, allowed are flax_cnn, gpt, hf, keras_cnn, resnet50, small_cnn, small_resnet, torchvision; for example model="),
    ("logger=wand", "logger=wand: no such logger, allowed are none, wandb; for example logger=wandb"),
    ("quantizer.bits=0", "quantizer.bits=0: must be a whole number from 1 to 16; for example quantizer.bits=2"),
    ("train.steps=-1", "train.steps=-1: must be a whole number from 1 to 100000000; for example train.steps=1500"),
    ("train.steps=abc", "train.steps=abc: must be a whole number; for example train.steps=1500"),
    ("optimizer.lr=abc", "optimizer.lr=abc: must be a positive finite number; for example optimizer.lr=0.003"),
    ("optimizer.lr=.nan", "optimizer.lr=.nan: must be a positive finite number; for example optimizer.lr=0.003"),
    ("train.batch_size=99999", "train.batch_size=99999: must be from 1 to 1437, the number of images; for example train.batch_size=64"),
    ("estimator.k=0", "estimator.k=0: must be a positive finite number; for example estimator.k=5.5"),
    ("estimator=ede", "quantizer.bits=2: Ede(t=1.0) is made for the two levels -max and max of one bit; for example quantizer.bits=1"),
    ("counterparts=[ste,nave]", "counterparts=[ste,nave]: must be a list of at least one of ste, naive, jitter, replica"),
    ("counterparts=[]", "counterparts=[]: must be a list of at least one of ste, naive, jitter, replica"),
    ("train.schedule=cosin", "train.schedule=cosin: must be one of cosine, constant, step; for example train.schedule=cosine"),
    ("train.warmup=1", "train.warmup=1.0: must be a number from 0 to below 1; for example train.warmup=0.02"),
    ("train.epochs=0", "train.epochs=0: must be null or a whole number from 1 to 100000000; for example train.epochs=10"),
    ("train.clip_norm=0", "train.clip_norm=0.0: must be null or a positive finite number; for example train.clip_norm=1"),
    ("train.clip_at=before", "train.clip_at=before: must be one of latent, quantized; for example train.clip_at=latent"),
    ("train.weight_decay=-1", "train.weight_decay=-1.0: must be a number from 0 up to 1e+06; for example train.weight_decay=0.01"),
    ("optimzer.lr=1", "optimzer.lr=1: there is no such key; did you mean optimizer.lr=1?"),
    ("quantizer.include=[Conv9d]", "quantizer.include=[Conv9d]: must be patterns that match modules of the model ('Conv9d' matches none; it has Conv2d, Linear); for example quantizer.include=[Conv2d]"),
    ("runtime.device=tpu9", "runtime.device=tpu9: must be a device that this machine has ("),
    ("model=keras_cnn", "model: cannot be built for images of 1x8x8: "),
    ("optimizer.momentum=-1", "optimizer.momentum=-1: Invalid momentum value: -1; for example optimizer.momentum=0.9"),
    ("optimizer._target_=torch.nn.Identity", "optimizer._target_=torch.nn.Identity: _target_ must make a torch.optim.Optimizer; for example optimizer._target_=torch.optim.SGD"),
    ("optimizer._target_=builtins.dict", "optimizer._target_=builtins.dict: cannot train this network: _target_ must make a torch.optim.Optimizer; for example optimizer._target_=torch.optim.SGD"),
    ("estimator._target_=qat_ste.nothing.Here", "estimator._target_=qat_ste.nothing.Here: "),
    ("train.steps=1000000000000", "train.steps=1000000000000: must be a whole number from 1 to 100000000; for example"),
    ("train.epochs=10000000", "train.epochs=10000000: comes to 220000000 steps; the number of steps must be a whole number from 1"),
    ("train.length_scale=1e308", "train.length_scale=1e+308: must be a number above 0 up to 10000; for example"),
    ("train.steps='???'", "train.steps=???: must be given; for example train.steps=1500"),
    ("optimizer.momentum='???'", "optimizer.momentum=???: must be given; for example optimizer.momentum=0.9"),
    ("train.steps=${nowhere}", "train.steps=${nowhere}: must lead to a key that is there (Interpolation key 'nowhere' not found); for"),
    ("paths.data=${nowhere}", "paths.data=${nowhere}: must lead to a key that is there"),
    ("paths.output=''", "paths.output=: must be a path, no part of it longer than 255 bytes; for example paths.output=outputs"),
    (f"paths.output={'x' * 300}", "paths.output=xxx"),
    ("train.shuffle=[1]", "train.shuffle=[1]: must be true or false; for example train.shuffle=true"),
    ("optimizer.nesterov=abc", "optimizer.nesterov=abc: must be true or false; for example optimizer.nesterov=false"),
    ("optimizer.momentum=nan", "optimizer.momentum=nan: must be finite; for example optimizer.momentum=0.9"),
    ("optimizer._partial_=false", "optimizer._partial_=false: SGD.__init__() missing 1"),
    ("estimator.k=[1]", "estimator.k=[1]: must be a number; for example estimator.k=5.5"),
    ("quantizer.levels=5", "quantizer.levels=5: must be one of ternary, fp4_e2m1, nf4, apot, int4, or a list of numbers; for example"),
    ("quantizer.include=[[],{}]", "quantizer.include=[[],{}]: must be a list of module types, type names or name patterns; for example"),
    ("quantizer.exclude=[Conv9d]", "quantizer.exclude=[Conv9d]: must be patterns that match modules of the model ('Conv9d' matches none; it has Conv2d, Linear); for example quantizer.exclude=[]"),
    ("counterparts=[[],{}]", "counterparts=[[],{}]: must be a list of at least one of ste"),
    ("counterparts=[jitter_1e308]", "counterparts=[jitter_1e308]: must be a list of at least one of ste"),
    ("checkpoint.keep=1000000000", "checkpoint.keep=1000000000: must be a whole number from 1 to 100; for example checkpoint.keep=2"),
    ("runtime.threads=1000000", "runtime.threads=1000000: must be null or a whole number from 1 to 1024; for example"),
    ("logger._target_=nowhere.Here", "logger._target_=nowhere.Here: Error lo"),
    ("train.steps", "Error parsing override 'train.steps' missing EQUAL"),
]  # fmt: skip


def lines(run) -> list[str]:
    assert run.code == 2, run.err
    assert "Traceback" not in run.err
    found = run.err.strip().splitlines()
    assert all(line.startswith("qat-run: ") for line in found), run.err
    return [line.removeprefix("qat-run: ") for line in found]


@pytest.mark.parametrize(("override", "message"), every_fifth(CASES))
def test_one_fault_one_line(qat_run, override, message):
    (line,) = lines(qat_run(override))
    assert line.startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["estimator=pwl", "quantizer.saturation=none"], "Pwl() is not positive: g = 0 at w = "),
        (["estimator=acos"], "Acos(s=1.0) is not even in u"),
        (["estimator=cosine", "estimator.a=1"], "g(u) <= 0 at |u| = 0.5"),
        (["estimator=stable_qat", "estimator.amplitude=0.25"], "g(u) <= 0 for |u| > 0.36"),
        (["estimator=swish_sign", "quantizer.bits=1"], "g(w) <= 0 for |w/max| > 0.48"),
    ],
)
def test_what_the_theorem_does_not_cover_is_trained_without_adjustment_and_says_so(qat_run, overrides, words):
    run = qat_run(*SHORT, "logger=none", *overrides)
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert (results["equivalence"], results["lr_factor"]) == ("none", None)
    assert words in results["equivalence_reason"]
    assert results["equivalence_reason"] in run.out
    assert results["counterparts"]["ste"] == results["counterparts"]["naive"]
    assert "for which no adjustment is known here" in results["verdict"]["statement"]


def test_one_bit_on_a_grid_is_told_by_its_levels(qat_run):
    (line,) = lines(qat_run("estimator=xnor", "quantizer=ternary"))
    assert line.startswith("quantizer.levels=ternary: Xnor(n=576.0, c=0.5) is made for the two levels -max and max")
    assert line.endswith("; for example quantizer.levels=[-1,1]")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["train.steps", "estimator.k", "paths.data", "train.nothing"])
def test_a_long_value_does_not_flood_the_terminal(qat_run, key):
    (line,) = lines(qat_run(f"{key}={'x' * 10_000}"))
    assert len(line) < 1000


def test_several_faults_are_told_together(qat_run):
    found = lines(qat_run("quantizer.bits=0", "train.steps=-1", "estimator.k=0", "counterparts=[nave]"))
    assert [line.split(":")[0] for line in found] == [
        "quantizer.bits=0", "train.steps=-1", "counterparts=[nave]", "estimator.k=0"]  # fmt: skip
    found = lines(qat_run("estimator=tanhh", "train.steps=abc", "optimzer.lr=3"))
    assert [line.split(":")[0] for line in found] == ["estimator=tanhh", "train.steps=abc", "optimzer.lr=3"]
    found = lines(qat_run("estimator=tanhh", "quantizer.bits=0", "optimizer.lr=abc", "train.batch_size=99999"))
    assert [line.split(":")[0] for line in found] == [
        "estimator=tanhh", "quantizer.bits=0", "optimizer.lr=abc", "train.batch_size=99999"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [["optimizer.lr=-1"], ["optimizer.momentum=-1"], ["optimizer.l=0.1", "estimator=tanh"], ["dataset=nope"]],
)
def test_it_is_told_before_torch_imports_its_compiler(tmp_path, overrides):
    code = (
        "import sys; from qat_ste.app import run_cli as cli\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = run([sys.executable, "-c", code, *overrides], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "['torch']\n"), done.stderr


def test_cuda_graphs_need_a_gpu(qat_run):
    (line,) = lines(qat_run("runtime.execution=graph", "runtime.device=cpu"))
    assert (
        line
        == "runtime.execution=graph: must be eager or compile: CUDA graphs need one GPU; for example runtime.execution=eager"
    )


def test_what_an_estimator_that_changes_does_not_go_with(qat_run):
    (line,) = lines(qat_run("estimator=dsq_annealed", "estimator.stages=1"))
    assert line == "estimator.stages=1: must be a whole number of at least 2; for example estimator.stages=10"


def test_a_fault_is_in_the_run_folder_too(qat_run):
    status = qat_run("train.steps=-1").read("status.json")
    assert status["status"] == "failed"
    assert "train.steps=-1: must be" in status["error"]


def test_folder_without_mnist_and_no_network(qat_run, tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nName or service not known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    (line,) = lines(qat_run("dataset=mnist", f"paths.data={tmp_path}"))
    assert line.startswith(
        f"paths.data={tmp_path}: MNIST files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-im"
    )
    assert f"neither in {tmp_path} nor in {tmp_path}/MNIST/raw" in line
    assert "Name or service not known" in line
    (line,) = lines(qat_run("dataset=mnist", f"paths.data={tmp_path}", "dataset.download=false"))
    assert "were not downloaded (dataset.download=false)" in line


def test_truncated_mnist_file(qat_run, tmp_path):
    for name in ("train-images", "t10k-images"):
        (tmp_path / f"{name}-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0" * 99)[:50])
    for name in ("train-labels", "t10k-labels"):
        (tmp_path / f"{name}-idx1-ubyte").write_bytes(b"\0" * 99)
    (line,) = lines(qat_run("dataset=mnist", f"paths.data={tmp_path}"))
    assert "train-images-idx3-ubyte.gz is damaged: " in line
    assert "expected MD5 f68b3c2dcbeaaa9fbdd348bbdeb94873" in line


def test_of_a_sweep_each_wrong_value_is_named_before_anything_starts(qat_run):
    run = qat_run("-m", "quantizer.bits=2,abc", "train.steps=10,x", "model=small_cnn", "hydra.sweep.dir=sweep")
    assert run.code == 2
    assert run.err.strip().splitlines() == [
        "qat-run: quantizer.bits=abc: must be a whole number; for example quantizer.bits=2",
        "qat-run: train.steps=x: must be a whole number; for example train.steps=1500",
    ]
    assert not list(Path("sweep").glob("*/"))
