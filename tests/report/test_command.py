from __future__ import annotations

import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import pytest

from qat_ste.report.sweep.diff import _fitted
from qat_ste.report.sweep.summary import read_summary
from scripts.reproduction_docs import DOCS, page
from scripts.run_records import keep
from tests.report.matrix import ERRORS, copy_run, write_matrix


def test_broken_folders_are_reported_and_the_page_is_still_written(qat_report, finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "sweep" / "good", 1, None, ERRORS, drawn=True)
    whole = (finished_run / "results.json").read_text()
    for name, content in {"empty": "", "truncated": whole[:1000], "foreign": '{"loss": 1}'}.items():
        (tmp_path / "sweep" / name).mkdir()
        (tmp_path / "sweep" / name / "results.json").write_text(content)
    done = qat_report("sweep")
    assert done.code == 0
    assert done.err == [
        "qat-report: sweep/empty: broken: results.json is empty",
        "qat-report: sweep/foreign: broken: results.json is not qat-run's: it lacks config, reference, counterparts",
        "qat-report: sweep/truncated: broken: results.json is truncated: it ends after 1000 characters",
    ]
    assert done.out[-1] == str(tmp_path / "sweep" / "report.html")
    html = (tmp_path / "sweep" / "report.html").read_text()
    for name, reason in (
        ("empty", "is empty"),
        ("foreign", "is not qat-run"),
        ("truncated", "is truncated"),
    ):
        assert re.search(rf"<li>\S*{name}: broken: results.json {reason}", html)
    assert 'href="good/report.html"' in html


def test_claims_on_the_terminal_and_page_on_the_last_line(qat_report, matrix, tmp_path, monkeypatch):
    monkeypatch.setattr("qat_ste.report.sweep.gallery._planned", lambda groups: [])
    done = qat_report(matrix.folder, matrix.folder / "mnist_sgd,default,42")
    assert (done.code, done.err) == (0, [])
    assert " ".join(done.out[0].split()) == "set-up ratio of errors bound measured 95 % interval seeds claim"
    assert re.match(r"mnist_sgd +naive / ste +at least 2 +[45]\.\d\d +\S+ to \S+ +3 +holds", done.out[2])
    assert done.out[-2:] == ["All 11 claims hold.", str(tmp_path / "report" / "report.html")]
    html = (tmp_path / "report" / "report.html").read_text()
    links = re.findall(r'<td class="text"><a href="([^"]+)"', html)
    assert len(links) == 6
    assert all((tmp_path / "report" / unquote(link)).is_file() for link in links)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: no such folder; give a run folder or a folder of runs"),
        (["empty"], "empty: no run folder at or below it; qat-run writes one, with results.json in it"),
        (["unfinished"], "no finished run in 1 run folder; wait for one, or start it again with qat-run"),
        (
            ["--diff", "nowhere", "empty"],
            "nowhere: no such folder; give a run folder or a folder of runs",
        ),
    ],
)
def test_nothing_to_report_on_is_one_line_and_exit_code_2(qat_report, tmp_path, arguments, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "run" / ".hydra").mkdir(parents=True)
    done = qat_report(*arguments)
    assert (done.code, done.out) == (2, [])
    assert done.err[-1] == f"qat-report: {line}"
    assert len(done.err) == (2 if arguments == ["unfinished"] else 1)


def test_arguments_that_do_not_go_together(qat_report):
    assert "name a run folder" in qat_report().err[-1]
    assert "--diff takes two folders and no other argument" in qat_report("--diff", "a", "b", "c").err[-1]


def test_single_run_gets_its_own_page_again_without_torch(finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy, ignore=shutil.ignore_patterns("figures", "report.html", "wandb"))
    code = ("import sys; from qat_ste.app.report_cli import main; main(); "
            "print([name for name in ('torch', 'hydra', 'omegaconf', 'scipy.stats') if name in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(copy / "report.html"), "[]"]
    assert (copy / "report.html").read_text() == (finished_run / "report.html").read_text()


def test_links_in_the_way_are_replaced_or_refused_never_written_through(qat_report, finished_run, tmp_path):
    run = copy_run(finished_run, tmp_path / "run", 1, None, ERRORS, drawn=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(outside / "precious")
    assert qat_report(run).code == 0
    assert (outside / "precious").read_text() == "mine"
    assert not (run / "report.html").is_symlink()
    shutil.rmtree(run / "figures")
    (run / "figures").symlink_to(outside)
    done = qat_report(run)
    assert (done.code, done.err) == (
        2, ["qat-report: figures is a symbolic link, which is not followed; put the file itself there"]
    )  # fmt: skip
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_diff_of_two_runs(qat_report, finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "a", 1, None, ERRORS)
    copy_run(
        finished_run, tmp_path / "b", 2, None, ERRORS | {"ste": 0.06}, config=lambda c: c["optimizer"].update(lr=0.1)
    )
    done = qat_report("--diff", "a", "b")
    lines = [line.split() for line in done.out]
    assert (done.code, done.err) == (0, [])
    assert ["seeds", "1", "2"] in lines
    assert ["optimizer.lr", "0.003", "0.1"] in lines
    error = ["weight", "alignment", "error"]
    errors = {name: lines[lines.index([name, "n", "=", "1", "n", "=", "1"]) :] for name in ("ste", "jitter")}
    assert next(line for line in errors["ste"] if line[:3] == error) == [*error, "0.0500", "0.0600"]
    assert next(line for line in errors["jitter"] if line[:3] == error) == [*error, "0.0400", "0.0400"]
    assert not any(line[:1] == ["train.l2"] for line in lines), "equal settings are not listed"


def test_diff_fits_a_terminal_of_80_columns(qat_report, finished_run, tmp_path, monkeypatch):
    long = "a_module_with_a_rather_long_path.schedules"

    def change(number):
        return lambda config: config.update(
            schedule={"_target_": f"{long}.{'LQ'[number]}inear"}, section={"a" * 60: 1, "b" * 60: number}
        )

    for number in range(2):
        for seed in range(12):
            errors = ERRORS | {"ste": 1e-5 * (1 + seed)}
            copy_run(
                finished_run, tmp_path / f"{number}" / f"{seed}", seed + number, None, errors, config=change(number)
            )
    monkeypatch.setattr("qat_ste.app.report_cli.PIPED_WIDTH", 80)
    lines = [line.rstrip() for line in qat_report("--diff", "0", "1").out]
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    assert ["schedule", "Linear", "Qinear"] in words
    assert ["…" + "b" * 35, "0", "1"] in words
    seeds = next(line for line in lines if line.startswith("seeds"))
    assert seeds.endswith("  0, 1, 2, 3, 4, 5, 6…  1, 2, 3, 4, 5, 6, 7…")
    assert all(not line or len(line.split("  ")[0]) > 0 or line.startswith("  ") for line in lines)
    assert not any(line.startswith("   ") for line in lines[2:]), "no cell is wrapped"


@pytest.mark.parametrize(
    ("values", "shortened"),
    [
        (("0.1", "x" * 21), ("0.1", "x" * 19 + "…")),
        (("a" * 20, "b"), ("a" * 20, "b")),
        (
            ("torch.optim.lr_scheduler.Cosine", "torch.optim.lr_scheduler.Step"),
            ("…lr_scheduler.Cosine", "…lr_scheduler.Step"),
        ),
        (("x" * 40 + "a" * 40, "x" * 40 + "b" * 40), ("…xxxx" + "a" * 14 + "…", "…xxxx" + "b" * 14 + "…")),
    ],
)
def test_diff_shortens_long_values_around_their_difference(values, shortened):
    assert _fitted("key", *values) == ("key", *shortened)


def test_diff_of_two_sweeps_by_group(qat_report, matrix, finished_run, tmp_path):
    def longer(config):
        config["train"]["share"] = 1.0

    choices = {"experiment": "mnist_sgd", "row": "default"}
    for seed in (42, 43):
        copy_run(finished_run, tmp_path / "b" / f"{seed}", seed, choices, ERRORS, config=longer)
        copy_run(finished_run, tmp_path / "b" / f"x{seed}", seed, {"experiment": "mine"}, ERRORS)
    done = qat_report("--diff", matrix.folder, "b")
    text = "\n".join(done.out)
    assert done.code == 0
    assert re.search(r"train.share +0.08 +1.0\n", text)
    assert re.search(
        r"\nste +n = 3 +n = 2\n(  .*\n)*?  weight alignment error +0\.0\d+ ± 0\.00\d+ +0.0500 ± 0.0000", text
    )
    assert f"only in A ({matrix.folder}): mnist_sgd, row bits_1" in text
    assert "only in B (b): mine" in text
    assert re.search(r"seeds +42, 43, 44 +42, 43\n", text)


def test_summary_is_small_stable_and_reads_back(qat_report, matrix, tmp_path, monkeypatch):
    monkeypatch.setattr("qat_ste.report.sweep.gallery._planned", lambda groups: [])
    for name in ("one.json", "two.json"):
        assert qat_report(matrix.folder, "--output", "out", "--summary", name).code == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json").stat().st_size < 40_000
    content, measured, claims = read_summary(tmp_path / "one.json")
    about = content["experiments"]["mnist_sgd"]["bits_1"]
    assert (about["seeds"], about["reproduce"], about["fraction_of_epochs"]) == ([42, 43, 44], ["short"], [0.08])
    assert content["runs"] == 24
    assert content["versions"]["torch"]
    exact = matrix.findings.measured["mnist_sgd"]["default"]["jitter"]["weight_alignment_error"]
    kept = measured["mnist_sgd"]["default"]["jitter"]["weight_alignment_error"]
    assert kept.mean == float(f"{exact.mean:.6g}") != exact.mean
    assert (kept.sd, kept.n) == (pytest.approx(exact.sd, rel=1e-5), 3)
    assert [claim.word for claim in claims] == [claim.word for claim in matrix.findings.claims]


def test_docs_from_a_summary(qat_report, matrix, tmp_path, monkeypatch):
    monkeypatch.setattr("qat_ste.report.sweep.gallery._planned", lambda groups: [])
    (tmp_path / "results").mkdir()
    qat_report(matrix.folder, "--output", "out", "--summary", "results/mine.json")
    text, _ = page(tmp_path / "results")
    assert "All 11 claims hold." in text
    assert "Where we differ" not in text
    assert re.search(r"\| mnist_sgd \| bits_1 \| 42, 43, 44 \| 24 \| short \| 0.08 \| \d+ s \| cpu \|", text)
    (tmp_path / "results" / "mine.md").write_text("Because.\n")
    assert page(tmp_path / "results")[0].endswith("### Where we differ, and why\n\nBecause.\n")


def test_docs_from_records(matrix, segment_run, tmp_path):
    """Two of three seeds of one row, and a run with segments: the page says what is missing and what segments say."""
    for seed in (42, 43):
        keep(matrix.folder / f"mnist_sgd,default,{seed}", tmp_path / "results" / "mnist_full" / f"{seed}.json")
    keep(segment_run, tmp_path / "results" / "others" / "segments.json")
    text, figures = page(tmp_path / "results")
    assert "Not trained yet (seeds that are there): mnist_sgd, default (2 of 3); mnist_sgd, scaledown (0 of 3);" in text
    assert re.search(r"\| runs \| default \| \d+ \| 2 \| [\d.]+ \([\d.]+ to [\d.]+\) \|", text)
    assert "mnist_full_mnist_sgd_alignment_error.png" in figures
    figures["mnist_full_mnist_sgd_alignment_error.png"](tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_docs_are_what_the_results_give():
    if not list((DOCS / "results").glob("*.json")):
        pytest.skip("docs/results has no measured results yet")
    assert (DOCS / "reproduction.md").read_text() == page(DOCS / "results")[0]


@pytest.mark.slow
def test_two_hundred_runs_take_less_than_1_gigabyte(finished_run, tmp_path):
    write_matrix(finished_run, tmp_path / "sweep", seeds=range(25))
    code = (
        "from pathlib import Path; from qat_ste.app.report_cli import main; main(); "
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "sweep"], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1_000_000, "kB"
    html = (tmp_path / "sweep" / "report.html").read_text()
    assert html.count('data-status="done"') == 200
    assert len(html) < 5_000_000
