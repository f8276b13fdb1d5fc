"""``qat-estimator``, the catalogue page, and a user's estimator: one class, one YAML file, no other change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

from qat_ste.app import atlas_cli, estimator_cli
from qat_ste.app import run_cli as cli
from qat_ste.app.compose import config_dir, options
from scripts import catalogue_docs
from tests.conftest import SHORT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
SPY = """
import sys
from qat_ste.app import estimator_cli
sys.argv = ["qat-estimator", *sys.argv[1:]]
try:
    estimator_cli.main()
finally:
    print("HEAVY", sorted({"torch", "wandb", "matplotlib", "sklearn", "numpy"} & set(sys.modules)))
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments: object) -> SimpleNamespace:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = main() or 0
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.strip().splitlines(), words=" ".join(out.split()))

    return call


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A package with one class, and a config folder with one YAML file."""
    package, conf = tmp_path / "my_package", tmp_path / "my conf, too"
    (conf / "estimator").mkdir(parents=True)
    package.mkdir()
    (package / "__init__.py").write_text(
        "from qat_ste.estimators import Estimator\n\n\n"
        "class Mine(Estimator):\n"
        '    """g = 1 - depth·u⁴: flat at the threshold.\n\n'
        "    Args:\n        depth: how far it goes down, in sixteenths.\n"
        '    """\n\n'
        "    def __init__(self, depth: float = 8.0) -> None:\n        self.depth = depth\n\n"
        "    def shape(self, u, quantizer):\n        return 1 - self.depth * u**4\n"
    )
    (conf / "estimator" / "mine.yaml").write_text("_target_: my_package.Mine\ndepth: 8.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return conf


def test_card_on_the_terminal_and_figure_in_the_folder(command):
    run = command(estimator_cli.main, "tanh", "estimator.k=9", "--output", "card.png", "quantizer.bits=3")
    assert (run.code, run.err) == (0, [])
    start = "Tanh(k=9.0) on 8 equally spaced levels, saturation range\nThe theorem covers this estimator.\n"
    assert run.out.startswith(start)
    assert "amounts to the STE at learning rate 0.8492 x 0.003 = 0.00255 from M(w0) adjustment remap: " in run.words
    assert "positive yes L₋ = 0.3954 bounded yes" in run.words
    assert run.out.splitlines()[-1] == str(Path("card.png").resolve())
    assert Path("card.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_assumption_is_shown_first_and_beside_its_flag_and_is_no_error(command):
    run = command(estimator_cli.main, "cosine", "estimator.a=1", "optimizer=adam")
    assert run.code == 0
    assert "positive no Cosine(a=1.0) is not positive: g = 0 at w = " in run.words
    assert run.out.splitlines()[1].startswith("The theorem does not apply: Cosine(a=1.0) is not positive: g = 0")
    assert "g(u) <= 0 at |u| = 0.5" in run.words
    assert "amounts to no STE run: no adjustment is known" in run.words
    assert Path("cosine.png").is_file()


def test_an_estimator_beyond_the_theorem_is_shown_as_such_before_its_flags(command):
    run = command(estimator_cli.main, "ewgs")
    assert run.code == 0
    assert run.out.splitlines()[1].startswith("The theorem does not cover this estimator: its g depends on the sign")
    assert "compared with the STE at learning rate 0.9967 x 0.003 = 0.00299 from M(w0)" in run.words
    assert "amounts to" not in run.words


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["tanhh"], ["estimator=tanhh: no such estimator, allowed are acos, approx_sign, arctan, "]),
        (
            ["tanh", "estimator.k=0", "quantizer.bits=77"],
            [
                "quantizer.bits=77: must be a whole number from 1 to 16",
                "estimator.k=0: must be a positive finite number; ",
            ],
        ),
        (["tanh", "quantizer.levels=[3,1]"], ["quantizer.levels=[3,1]: must be at least two finite numbers in "]),
        (["tanh", "--config-dir", "nowhere"], ["--config-dir nowhere: no such folder"]),
        (["tanh", "--output", "nowhere/card.png"], ["--output nowhere/card.png: No such file or directory"]),
    ],
)
def test_each_wrong_value_is_one_line(command, arguments, lines):
    run = command(estimator_cli.main, *arguments)
    assert run.code == 2
    for found, expected in zip(run.err, lines, strict=True):
        assert found.startswith(f"qat-estimator: {expected}")


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_reader_that_ends_early_is_no_error(tmp_path, unbuffered):
    code = "from qat_ste.app.commands import qat_estimator; qat_estimator()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ewgs"], cwd=tmp_path, env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 0)
    assert (tmp_path / "ewgs.png").is_file()


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(command, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run = command(estimator_cli.main, "--help")
    assert run.code == 0
    assert columns - 15 < max(map(len, run.out.splitlines())) <= columns


@pytest.mark.parametrize(
    ("arguments", "line", "word"),
    [
        (["--help"], "", "estimators: acos, approx_sign, arctan, "),
        (["-sc", "query=bash"], "qat-estimator ta", "tanh tanh_floor\n"),
        (["-sc", "query=bash"], "qat-estimator tanh optimizer=s", "optimizer=sgd optimizer=signsgd\n"),
    ],
)
def test_help_and_completion_import_nothing_heavy(arguments, line, word):
    done = subprocess.run([sys.executable, "-c", SPY, *arguments], capture_output=True, text=True, timeout=60,
                          env=ENVIRONMENT | {"COMP_LINE": line})  # fmt: skip
    assert word in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []")


@pytest.fixture
def search_path(monkeypatch):
    """Restores ``sys.path`` afterwards; it does not hold the current folder, as for an installed command."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])


def test_modules_beside_the_config_folder_are_importable(command, tmp_path, search_path):
    conf = tmp_path / "project" / "my_conf"
    (conf / "estimator").mkdir(parents=True)
    (conf.parent / "beside_conf.py").write_text(
        "from qat_ste.estimators import Estimator\n\n\nclass Beside(Estimator):\n"
        "    def shape(self, u, quantizer):\n        return 1 - 8 * u**4\n"
    )
    (conf / "estimator" / "beside.yaml").write_text("_target_: beside_conf.Beside\n")
    (conf / "estimator" / "lost.yaml").write_text("_target_: no_such_module.Lost\n")
    run = command(estimator_cli.main, "beside", "--config-dir", conf)
    assert (run.code, run.err) == (0, [])
    assert run.out.startswith("Beside() on 4 equally spaced levels")
    run = command(estimator_cli.main, "lost", "--config-dir", conf)
    (line,) = run.err
    assert run.code == 2
    assert line.startswith("qat-estimator: estimator._target_=no_such_module.Lost: Error loading")
    assert line.endswith(f"; put its module beside the folder {conf} or on PYTHONPATH")
    assert "null" not in line


def test_a_wrong_class_is_one_line(command, tmp_path, search_path):
    (tmp_path / "conf" / "estimator").mkdir(parents=True)
    (tmp_path / "wrong_classes.py").write_text(
        "from qat_ste.estimators import Estimator\n\n\nclass NoQuantizer(Estimator):\n"
        "    def shape(self, u):\n        return 1 + 0 * u\n\n\nclass BadIntegral(Estimator):\n"
        "    def shape(self, u, quantizer):\n        return 1 + 0 * u\n\n"
        "    def integral(self, u, quantizer):\n        return 3\n"
    )
    for name in ("NoQuantizer", "BadIntegral"):
        (tmp_path / "conf" / "estimator" / f"{name}.yaml").write_text(f"_target_: wrong_classes.{name}\n")
    run = command(estimator_cli.main, "NoQuantizer", "--config-dir", "conf")
    message = "qat-estimator: NoQuantizer.shape must be a method with the arguments self, u and quantizer, got '(u)'"
    assert (run.code, run.err) == (2, [message])
    run = command(estimator_cli.main, "BadIntegral", "--config-dir", "conf")
    message = "qat-estimator: estimator=BadIntegral: AttributeError: 'int' object has no attribute 'tolist'"
    assert (run.code, run.err) == (2, [message])


def test_a_users_estimator_has_a_card(command, mine):
    run = command(estimator_cli.main, "mine", "--config-dir", mine)
    assert run.code == 0, run.err
    assert run.out.startswith("Mine(depth=8.0) on 4 equally spaced levels, saturation range\n")
    assert "\ng = 1 - depth·u⁴: flat" in run.out
    assert Path("mine.png").is_file()
    run = command(estimator_cli.main, "minee", "--config-dir", mine)
    assert run.code == 2
    assert ", mine, " in run.err[0] and run.err[0].endswith("; for example estimator=mine")


@pytest.mark.slow
def test_a_users_estimator_is_listed_and_trains(qat_run, mine):
    run = qat_run("--config-dir", str(mine), *SHORT, "logger=none", "estimator=mine")
    assert run.code == 0, run.err
    assert run.read("results.json")["lr_factor"] == pytest.approx(0.879, abs=5e-3)
    assert ", mine, " in qat_run("--config-dir", str(mine), "--help").out
    wrong = qat_run("--config-dir", str(mine), "estimator=mine", "train.steps=abc")
    assert wrong.err.strip() == "qat-run: train.steps=abc: must be a whole number; for example train.steps=1500"


def test_all_commands_prefer_the_packaged_one_of_two_yaml_files_with_the_same_name(command, qat_run, mine):
    (mine / "estimator" / "tanh.yaml").write_text("_target_: my_package.Mine\ndepth: 4.0\n")
    assert command(estimator_cli.main, "tanh", "--config-dir", mine).out.startswith("Tanh(k=5.5) on ")
    assert "_target_: qat_ste.estimators.Tanh" in qat_run("--config-dir", str(mine), "--cfg", "job").out
    assert options("estimator", config_dir(), str(mine))["tanh"].is_relative_to(config_dir())


@pytest.mark.slow
def test_a_users_estimator_in_the_catalogue(command, mine, monkeypatch):
    packaged = {name: path for name, path in options("estimator", config_dir()).items() if name in {"ste", "tanh"}}
    yaml = mine / "estimator" / "mine.yaml"
    monkeypatch.setattr(catalogue_docs, "options", lambda group, *folders: (
        packaged | ({"mine": yaml} if str(mine) in folders else {}) if group == "estimator" else options(group, *folders)
    ))  # fmt: skip
    arguments = ("--config-dir", mine, "--output", "pages")
    assert command(catalogue_docs.main, *arguments).code == 0
    text = Path("pages/catalogue.md").read_text()
    assert "| [`mine`](#mine) | – | yes | yes | yes | yes | yes |" in text
    assert "- `depth` = `8`: how far it goes down, in sixteenths." in text
    assert {path.stem for path in Path("pages/catalogue").iterdir()} == {"mine", "ste", "tanh"}
    assert command(catalogue_docs.main, *arguments, "--check").code == 0
    yaml.write_text("_target_: my_package.Mine\ndepth: 4.0\n")
    stale = command(catalogue_docs.main, *arguments, "--check")
    assert (stale.code, stale.err) == (1, ["pages/catalogue.md is stale: run python scripts/catalogue_docs.py"])
    yaml.write_text("_target_: my_package.Mine\ndepth: 8.0\n")
    Path("pages/catalogue/ste.png").unlink()
    assert command(catalogue_docs.main, *arguments, "--check").code == 1


def test_a_users_estimator_in_the_atlas(command, mine):
    arguments = ("atlas.estimators=[mine]", "atlas.optimizers=[sgd]", "--config-dir", mine, "--dry-run")
    run = command(atlas_cli.main, *arguments)
    assert run.code == 0, run.err
    assert "sgd" in run.out


@pytest.mark.slow
def test_the_catalogue_is_up_to_date(command):
    run = command(catalogue_docs.main, "--check")
    assert run.code == 0, run.err
