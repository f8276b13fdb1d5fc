"""States that load and do not fit a run, and files that are no checkpoints of ours."""

from __future__ import annotations

import json
import os
import zipfile

import pytest
import torch

from qat_ste import Checkpoints, CheckpointSchedule
from qat_ste.divergence import Metric
from qat_ste.experiment.lockstep import Stopped
from tests.experiment.tiny import ADAM, run

TINY = {"steps": 4, "every": 1, "optimizer": ADAM, "counterparts": ["ste"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints after steps 2 and 1, and the rows of the run undisturbed."""
    folder, seen = tmp_path_factory.mktemp("saved"), []
    with pytest.raises(Stopped):
        run(
            **TINY,
            checkpoints=Checkpoints(folder, {}, CheckpointSchedule(every_steps=1)),
            stop=lambda: bool(seen.append(1)) or len(seen) == 2,
        )
    newest, older = ((folder / name).read_bytes() for name in ("checkpoint.pt", "checkpoint.1.pt"))
    return newest, older, run(**TINY).rows


@pytest.fixture
def folder(saved, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(saved[0])
    return tmp_path


def go_on(folder):
    return run(**TINY, checkpoints=Checkpoints(folder, {}))


def alter(folder, change):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoint.pt")


def nested(state, *keys):
    for key in keys:
        state = state[key]
    return state


def test_the_state_itself_fits(folder, saved):
    assert go_on(folder).rows == saved[2]


@pytest.mark.parametrize(
    ("keys", "key", "value", "told"),
    [
        (("members",), 1, None, "members.1 has other keys"),
        (("members",), 0, {"model": {}}, "members.0 has other keys"),
        (("members", 1, "model"), "0.bias", torch.zeros(()), "members.1.model.0.bias is no tensor of shape (8,)"),
        (("members", 1, "model"), "0.bias", torch.zeros(8).double(), "members.1.model.0.bias is no tensor of"),
        (("members", 1, "model"), "0.bias", torch.zeros(8, device="meta"), "members.1.model.0.bias is no tensor of"),
        (("members", 0, "optimizer"), "param_groups", [], "members.0.optimizer has other groups"),
        (("members", 0, "optimizer", "state"), 0, {}, "members.0.optimizer has other parameters"),
        (("members", 1, "optimizer", "state"), 99, {}, "members.1.optimizer has other parameters"),
        (("members", 0, "optimizer", "param_groups", 0), "betas", "ab", "members.0.optimizer.betas is no list of 2"),
        (("ranks", 0), "losses", torch.zeros(()), "ranks.losses is no tensor of shape (2, 4)"),
        (("ranks", 0, "divergence", "trajectories", 0), "count", torch.ones(1), "ranks.divergence.trajectories.0.count"),
        (("ranks", 0, "divergence", "trajectories", 0, "sequences"), "offset", torch.zeros(3).long(), "are inconsistent"),
        ((), "ranks", [], "other counterparts or another number of ranks"),
        ((), "names", {"reference": 0}, "other counterparts or another number of ranks"),
        ((), "mode", {}, "its mode is {}, not auto"),
        ((), "step", 99, "it was made after step 99 of 4"),
        ((), "record", json.dumps({"rows": []}), "record has other keys"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(folder, keys, key, value, told):
    alter(folder, lambda state: nested(state, *keys).__setitem__(key, value))
    with pytest.raises(ValueError, match="does not fit this run") as caught:
        go_on(folder)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'checkpoint.pt'} (or the one before)")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("step", "2"), ("step", True), ("step", 0.5), ("record", "[]"), ("record", '{"rows": [{"step": "x"}]}'),
                       ("config", 3)]
)  # fmt: skip
def test_what_the_command_asks_first_makes_a_checkpoint_unreadable(folder, saved, key, value, caplog):
    (folder / "checkpoint.1.pt").write_bytes(saved[1])
    alter(folder, lambda state: state.__setitem__("config", "{}"))
    alter(folder, lambda state: state.__setitem__(key, value))
    assert Checkpoints(folder, {}).step == 1
    assert "checkpoint.pt cannot be read (" in caplog.text


def test_a_number_too_large_for_a_float_is_none(folder):
    def change(state):
        record = json.loads(state["record"])
        record["initial"][1] = dict.fromkeys(record["initial"][1], 10**400)
        state["record"] = json.dumps(record)

    alter(folder, change)
    with pytest.raises(ValueError, match=r"does not fit this run: record\.initial\.1\.\w+ is no number"):
        go_on(folder)


def test_hyperparameters_with_which_there_is_no_step(folder):
    alter(folder, lambda state: state["members"][1]["optimizer"]["param_groups"][0].update(betas=[1.0, 0.95]))
    with pytest.raises(ValueError, match="^optimizer must be one that can take a step with lr=.*division by zero"):
        go_on(folder)


def test_hyperparameters_of_a_later_torch_are_those_of_now(folder, saved):
    alter(folder, lambda state: [state["members"][n]["optimizer"]["param_groups"][0].pop("maximize") for n in (0, 1)])
    assert go_on(folder).rows == saved[2]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("trick", ["twice", "packed", "overlapping", "fifo", "folder"])
def test_tricks_with_the_file_leave_the_one_before(folder, saved, trick):
    path = folder / "checkpoint.pt"
    (folder / "checkpoint.1.pt").write_bytes(saved[1])
    with zipfile.ZipFile(path) as old:
        parts = [(info.filename, old.read(info)) for info in old.infolist()]
    path.unlink()
    if trick == "fifo":
        os.mkfifo(path)
    elif trick == "folder":
        path.mkdir()
    elif trick == "overlapping":
        name = parts[0][0].encode()
        path.write_bytes(
            saved[0].replace(
                b"PK\x05\x06", saved[0][saved[0].index(b"PK\x01\x02") :][: 46 + len(name)] + b"PK\x05\x06", 1
            )
        )
    else:
        kind = zipfile.ZIP_DEFLATED if trick == "packed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as new:
            for name, content in parts * (2 if trick == "twice" else 1):
                new.writestr(name, content)
    assert Checkpoints(folder, {}).step == 1


def test_a_foreign_configuration_is_told_in_few_printable_lines(tmp_path):
    torch.save({"step": 1, "record": '{"rows": []}', "config": json.dumps({f"k{n}\x1b[31m": "v\n" * 999 for n in range(99)})},
               tmp_path / "checkpoint.pt")  # fmt: skip
    with pytest.raises(ValueError, match="was made with") as caught:
        Checkpoints(tmp_path, {})
    lines = str(caught.value).splitlines()
    assert len(lines) == 20
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def test_a_metric_that_came_since_goes_on_unless_it_has_to_gather(folder, saved):
    """A metric that is taken from the weights alone needs nothing of the steps before."""

    class Since(Metric):
        """Share of latent weights with the same sign."""

        name = "since"

        def terms(self, chunk_group):
            same = (
                self.pair.reference.weights[chunk_group.where].sign()
                == self.pair.counterpart.weights[chunk_group.where].sign()
            )
            return same, torch.ones_like(same)

    try:
        found = go_on(folder)
        assert found.rows == saved[2]
        assert 0 < found.counterparts["ste"].more["since"] <= 1
        Since.state_dict = lambda self: {"seen": torch.zeros(3)}
        with pytest.raises(ValueError, match="has other keys"):
            go_on(folder)
    finally:
        Metric.registry.remove(Since)
