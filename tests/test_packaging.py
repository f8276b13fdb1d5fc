"""The wheel is complete: its packages are listed by name, its configuration composes from anywhere."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_listed_packages_are_the_folders_with_an_init_file():
    folders = {path.parent for path in (ROOT / "qat_ste").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"qat_ste.conf"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_nothing_but_the_init_file_lies_beside_the_rooms():
    assert [path.name for path in (ROOT / "qat_ste").glob("*.py")] == ["__init__.py"]


def test_imports_go_downwards():
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout


def foreign_imports(folder: Path) -> set[str]:
    """Packages that files below the folder import, here and there within them too, other than Python's and ours."""
    nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    ours = {"qat_ste", "tests", "scripts", *(path.stem for path in (ROOT / "scripts").iterdir())}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ours


def declared(*extras: str) -> set[str]:
    optional = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"], *(item for extra in extras for item in optional[extra])]
    return {re.match(r"[\w.-]+", item)[0].lower() for item in requirements}


@pytest.mark.parametrize(
    ("folder", "extras"), [("qat_ste", ("hf", "slurm")), ("scripts", ("benchmark",)), ("tests", ("test", "hf"))]
)
def test_what_is_imported_is_declared(folder, extras):
    distributions = packages_distributions()
    found = {name: distributions.get(name, [name]) for name in foreign_imports(ROOT / folder)}
    assert {"torch", "numpy"} <= set(found)
    allowed = declared(*extras)
    assert {name: those for name, those in found.items() if not {one.lower() for one in those} & allowed} == {}


@pytest.mark.slow
def test_installed_wheel_composes_its_configuration_in_another_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("qat_ste", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, capture_output=True)
    # Its dependencies are those of this environment, where the package itself is hidden by the fresh one.
    hydra = Path(shutil.__file__).parent, *(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "qat-run", "experiment=mnist_sgd", "estimator=pwl", "--cfg", "job"],
        capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, hydra))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_target_: qat_ste.estimators.Pwl" in done.stdout
    where = subprocess.run([python, "-I", "-c", "import qat_ste; print(qat_ste.__file__)"], capture_output=True, text=True,
                           cwd=tmp_path, check=True)  # fmt: skip
    assert str(tmp_path) in where.stdout
    files = subprocess.run([python, "-m", "pip", "show", "-f", "qat-ste"], capture_output=True, text=True, check=True)
    for path in [*(ROOT / "conf").rglob("*.yaml"), ROOT / "qat_ste/report/run/page.html"]:
        packaged = Path("qat_ste") / path.relative_to(ROOT) if "conf" in path.parts else path.relative_to(ROOT)
        assert str(packaged) in files.stdout
