"""UnifiedSSR: two views that share weights and read each other, searches that mix both, runs that learn and resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.walks import make_data

from index.sequence.events import Event, Task
from training.baselines.joint_log import NO_QUERY, UNKNOWN, JointLog
from training.baselines.networks.two_views import TwoViews, correlation_loss
from training.baselines.run import run_baseline
from training.baselines.settings import BaselineError, UnifiedSSRSettings, settings_from
from training.baselines.unified_ssr import SHARES, unified_ssr
from training.data.dataset import DataSet
from training.data.splits import Case, leave_one_out
from training.evaluation.case_ranks import CaseRanks
from training.evaluation.metrics import per_case
from training.evaluation.scoring import score_ranks

QUIET = Console(quiet=True)
SMALL = {
    "hidden": 16, "layers": 1, "heads": 2, "batch_size": 8, "threads": 1, "dropout": 0.1, "epochs": 25,
    "patience": 25, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


def network(users: int = 0) -> TwoViews:
    torch.manual_seed(0)
    model = TwoViews(20, 12, users, 16, layers=2, heads=2, dropout=0.3, max_events=8).eval()
    torch.nn.init.normal_(model.items.weight)
    torch.nn.init.normal_(model.terms.weight)
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(20, (3, 8)), torch.randint(1, 12, (3, 8, 2)), torch.arange(3)


@pytest.mark.parametrize("view", [0, 1])
def test_each_view_alone_trains_the_same_transformer(view: int) -> None:
    model = network()
    model.states(*inputs())[view].square().sum().backward()
    shared = dict(model.layers.named_parameters())
    assert shared  # one transformer, and no second one that only the other view could train
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"items", "terms", "positions", "input_norm", "layers", "norm", "boundary"}
    for name, weight in shared.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0 or name.endswith("qkv.bias"), (
            name
        )  # keys' bias cancels in a softmax


def test_a_view_that_reads_the_same_as_the_other_has_the_same_state() -> None:
    model = network()
    rows, _, _ = inputs()
    with torch.no_grad():
        places = model.positions.weight[: rows.shape[1]]
        x = model.input_norm(model.items(rows) + places)
        product, query = x, x
        for layer in model.layers:
            product, query = layer(product, query)
    assert torch.equal(product, query)


def test_the_views_read_each_other_and_not_the_future() -> None:
    model = network()
    rows, terms, users = inputs()
    product, query = model.states(rows, terms, users)
    others = terms.clone()
    others[:, 5:] = others[:, 5:] % 11 + 1
    for before, after in zip((product, query), model.states(rows, others, users), strict=True):
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
        assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-3)  # the product view reads queries, too
    changed = rows.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 20
    for before, after in zip((product, query), model.states(changed, terms, users), strict=True):
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
        assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-3)


def test_a_query_is_the_mean_of_its_terms() -> None:
    model = network()
    terms = torch.tensor([[3, 5, 0, 0], [7, 0, 0, 0]])
    table = model.terms.weight
    assert torch.allclose(model.terms(terms), torch.stack([(table[3] + table[5]) / 2, table[7]]))


def test_a_session_goes_back_to_where_neighbours_differ() -> None:
    model = network()
    with torch.no_grad():
        model.boundary.weight.fill_(40.0)
        model.boundary.bias.fill_(0.0)
    one, two = torch.eye(16)[0], torch.eye(16)[1]
    states = torch.stack([one, one, -two, -two])[None]
    with torch.no_grad():
        product, query = model.sessions(states, states)
        model.boundary.bias.fill_(-80.0)  # nothing goes on: every event is a session
        alone, _ = model.sessions(states, states)
    assert torch.equal(product, query)
    assert torch.allclose(product[0, 1], one, atol=1e-6)
    # Neighbours at a right angle go on with a probability of a half: weights 1, 1 against a half each.
    assert torch.allclose(product[0, 3], (one - 2 * two) / 3, atol=1e-5)
    assert torch.allclose(alone[0, 2], -two, atol=1e-5)
    assert float(correlation_loss(torch.eye(4), torch.eye(4), 0.1)) < 1e-3
    assert float(correlation_loss(torch.eye(4), torch.eye(4).roll(1, 0), 0.1)) > 5


def test_every_event_is_a_target_once_with_the_query_that_asked_for_it() -> None:
    histories = [
        (Event(3, Task.SEARCH, "red hat"), Event(4), Event(5, Task.SEARCH, "blue")),
        (Event(1), Event(2, Task.SEARCH, "red")),
        (Event(6),),
    ]
    log = JointLog(histories, items=10)
    found = []
    for batch in log.batches(2, 2, np.random.default_rng(0)):
        for at in torch.nonzero(batch.targets >= 0):
            cell = tuple(at.tolist())
            found.append(
                (int(batch.users[cell[0]]), int(batch.rows[cell]), int(batch.targets[cell]),
                 bool(batch.searches[cell]), batch.terms[cell].tolist())
            )  # fmt: skip
    terms = log.vocabulary.terms(["red hat", None, "blue", "red"]).tolist()
    assert sorted(found) == sorted(
        [(0, 10, 3, True, terms[0]), (0, 3, 4, False, terms[1]), (0, 4, 5, True, terms[2]),
         (1, 10, 1, False, terms[1]), (1, 1, 2, True, terms[3]), (2, 10, 6, False, terms[1])]
    )  # fmt: skip
    assert terms[1][0] == NO_QUERY
    assert log.vocabulary.terms(["green"])[0][0] == UNKNOWN
    with pytest.raises(BaselineError, match="no training event is a search"):
        JointLog([(Event(1), Event(2))], items=10)


def test_cases_are_read_as_training_reads_their_events() -> None:
    history = (Event(3, Task.SEARCH, "red hat"), Event(4), Event(5, Task.SEARCH, "blue"))
    log = JointLog([history], items=10)
    case = Case("a", history[:2], 5, "blue")
    (batch,) = log.batches(3, 1, np.random.default_rng(0))
    rows, terms, last = log.read_cases([case, Case("b", (), 3, None)], Task.SEARCH, 3)
    assert torch.equal(rows[:1], batch.rows)
    assert torch.equal(terms[:1], batch.terms)
    assert last.tolist() == [2, 0]
    rows, terms, last = log.read_cases([case], Task.RECOMMENDATION, 2)
    assert rows.tolist() == [[3, 4]]
    assert terms[0, :, 0].tolist() == [NO_QUERY, NO_QUERY]


def test_it_learns_both_tasks_and_chooses_the_share_on_validation(data: Path, tmp_path: Path) -> None:
    wanted = UnifiedSSRSettings(**SMALL)
    result = run_baseline(data, tmp_path / "run", wanted, console=QUIET)
    assert result["recommendation"]["hit@5"] > 0.9  # the next thing of the same colour
    assert result["search"]["hit@5"] > 0.9  # the title is the query
    assert set(result["floors"]["popularity"]) == {"search", "recommendation"}
    assert set(CaseRanks.load(tmp_path / "run").tasks) == set(Task)

    dataset = DataSet.load(data)
    split = leave_one_out(dataset)
    baseline = unified_ssr(wanted, dataset, split)
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert round(float(weights["search_share"]), 1) == result["training"]["search_share"]
    baseline.model.load_state_dict(weights)
    baseline.model.eval()
    cases = list(split.validation)
    search = baseline.scores[Task.SEARCH]
    chosen = []
    with torch.no_grad():
        for spoilt in ("items.weight", "terms.weight"):
            table = dict(baseline.model.named_parameters())[spoilt]
            table += table.std() * torch.randn_like(table)
            by_share = []
            for share in SHARES:
                baseline.model.search_share.fill_(share)
                by_share.append(per_case(score_ranks(search, cases, limit=10))["ndcg@10"].mean())
            baseline.choose({Task.SEARCH: cases, Task.RECOMMENDATION: cases})
            assert float(baseline.model.search_share) == pytest.approx(SHARES[int(np.argmax(by_share))])
            chosen.append(max(by_share) - min(by_share))
    assert max(chosen) > 0.005  # it matters which one is chosen
    # The query view has a say, and so has the query.
    baseline.model.search_share.fill_(0.9)
    little = search(cases)
    baseline.model.search_share.fill_(0.1)
    assert not np.allclose(search(cases), little, atol=1e-2)
    other = [Case(c.user_id, c.history, c.target, "golden gloves") for c in cases]
    assert not np.allclose(search(other), search(cases), atol=1e-2)
    recommend = baseline.scores[Task.RECOMMENDATION]
    assert np.allclose(recommend(other), recommend(cases))


def test_a_run_of_both_tasks_that_was_stopped_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = UnifiedSSRSettings(**SMALL | {"epochs": 3, "user_vectors": True, "sampled_negatives": 5})
    whole = run_baseline(data, tmp_path / "whole", wanted, console=QUIET)
    saved = torch.save
    count = 0

    def stop_after_two(content: object, file: Path) -> None:
        nonlocal count
        saved(content, file)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_baseline(data, tmp_path / "stopped", wanted, console=QUIET)
    monkeypatch.undo()
    again = run_baseline(data, tmp_path / "stopped", wanted, resume=True, console=QUIET)
    assert all(again[task.value] == whole[task.value] for task in Task)
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "stopped" / "weights.safetensors")[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 15}, "does not divide"),
        ({"user_vectors": True, "users": "chronological"}, "did not train on"),
    ],
)
def test_settings_of_both_views_that_do_not_fit_are_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        settings_from(UnifiedSSRSettings, changed)
