"""The fit of a fusion on a small trained model, and what training, `gems fuse` and `gems evaluate` make of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.walks import make_data, settings

from index.bundle.bundle import Bundle
from index.bundle.update import rollback_index, update_index
from index.catalogue import Item
from index.pool.fusion import ITEM_SIGNALS, Fusion, TaskFusion, relevance
from index.pool.pool import Pool
from index.sequence.events import Task
from server.engine.contract import Ranking, RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.errors import EvaluationError
from training.evaluation.evaluate import evaluate
from training.evaluation.pools import rank_pools
from training.evaluation.ranking import cases_of, target_ranks
from training.fusion.cases import fit_cases
from training.fusion.choices import rank_choices
from training.fusion.logit import fit_weights
from training.fusion.refit import fuse_bundle
from training.pipeline import train

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("walks") / "data")


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = train(data, tmp_path_factory.mktemp("runs") / "run", settings(), console=QUIET)
    assert bundle is not None
    return bundle


def test_training_ends_with_weights_for_both_tasks(published: Path) -> None:
    fusion = Bundle.open(published).index.pool.fusion  # type: ignore[union-attr]
    assert fusion is not None
    assert set(fusion.tasks) == set(Task)
    found = fusion.tasks[Task.SEARCH].figures["found"]
    assert found["title"] == 1.0
    assert found["attribute"] == 1.0  # the ids
    assert min(found["title, with fresh items"], found["attribute, with fresh items"]) >= 0.9
    assert 0 < fusion.tasks[Task.SEARCH].cutoff < 1


def test_the_pool_ranks_the_targets_at_least_as_well_as_the_beam(published: Path, data: Path) -> None:
    result = evaluate(published, data)
    assert result["protocol"]["items"] == "pool"
    for task in ("search", "recommendation"):
        assert result[task]["ndcg@10"] >= result["floors"]["beam"][task]["ndcg@10"] - 0.02
    assert set(result["calibration"]) == {"search", "recommendation"}
    assert max(result["calibration"].values()) < 0.1
    alone = evaluate(published, data, ranking="beam")
    for task in Task:
        assert alone[task.value] == result["floors"]["beam"][task.value]


def test_evaluation_among_sampled_items_ranks_only_those(published: Path, data: Path) -> None:
    result = evaluate(published, data, sampled_negatives=5)
    for task in Task:
        assert result[task.value]["hit@10"] == 1.0  # six candidates, all of them found


def test_simulated_fresh_items_have_no_other_signals_than_words(published: Path, data: Path) -> None:
    bundle, dataset = Bundle.open(published), DataSet.load(data)
    index, engine = bundle.index.pool, TorchEngine.open(bundle)
    assert index is not None
    cases = fit_cases(Task.SEARCH, leave_one_out(dataset).validation[:30], dataset.catalogue, (), 0)
    ranked = rank_choices(
        engine, bundle.encoder, index, Task.SEARCH, cases,
        beam_width=10, exclude_history=False, fresh_share=0.1, seed=0,
    )  # fmt: skip
    assert {each.simulated for each in ranked} == {False, True}
    for each in ranked:
        signals = dict(zip(ITEM_SIGNALS[Task.SEARCH], each.choice.signals.T, strict=True))
        fresh = signals["fresh"] == 1
        assert fresh.any() <= each.simulated
        for name, values in signals.items():
            assert not values[~fresh if name.startswith("fresh") else fresh].any(), name
    hidden = [each for each in ranked if each.simulated and each.case.kind == "logged"]
    assert sum(each.choice.weight for each in hidden) == pytest.approx(len(hidden), rel=0.35)


@pytest.mark.parametrize("scheme", ["semantic", "atomic"])
def test_prompts_leave_out_simulated_new_items_where_one_code_names_an_item(
    scheme: str, published: Path, data: Path, tmp_path: Path
) -> None:
    """Prompts of a bundle do so with items that were added to it."""
    atomic = settings({"identifiers.scheme": "atomic", "optimiser.epochs": 1})
    path = published if scheme == "semantic" else train(data, tmp_path / "run", atomic, console=QUIET)
    assert path is not None
    bundle, dataset = Bundle.open(path), DataSet.load(data)
    engine, index = TorchEngine.open(bundle), bundle.index.pool
    assert index is not None
    asked: list[RankRequest] = []

    class Listening:
        everything = engine.everything
        everything_for = engine.everything_for

        def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
            asked.extend(requests)
            return engine.rank(requests)

    cases = fit_cases(Task.RECOMMENDATION, leave_one_out(dataset).validation[:20], dataset.catalogue, (), 0)
    ranked = rank_choices(
        Listening(), bundle.encoder, index, Task.RECOMMENDATION, cases,
        beam_width=10, exclude_history=False, fresh_share=0.1, seed=0,
    )  # fmt: skip
    whole = [bundle.encoder.prompt(each.case.case.history).ids for each in ranked]
    left_out = [len(ids) - len(request.prompt) for ids, request in zip(whole, asked, strict=True)]
    assert not any(n for n, each in zip(left_out, ranked, strict=True) if not each.simulated)
    assert any(left_out) == (scheme == "atomic")


def test_new_items_get_the_share_that_they_are_said_to_have(
    published: Path, data: Path, tmp_path: Path
) -> None:
    """The relevance of a fit adds up to the share of the targets, of new items as of all others."""
    bundle, dataset = Bundle.open(published), DataSet.load(data)
    index, engine = bundle.index.pool, TorchEngine.open(bundle)
    assert index is not None
    cases = fit_cases(Task.RECOMMENDATION, leave_one_out(dataset).validation, dataset.catalogue, (), 0)
    of_fresh = []
    for share in (0.02, 0.4):
        ranked = rank_choices(
            engine, bundle.encoder, index, Task.RECOMMENDATION, cases,
            beam_width=10, exclude_history=False, fresh_share=share, seed=0,
        )  # fmt: skip
        fusion = Fusion(
            {Task.RECOMMENDATION: TaskFusion(fit_weights(Task.RECOMMENDATION, [e.choice for e in ranked]))}
        )
        item, nothing = fusion.item_weights(Task.RECOMMENDATION), fusion.nothing_weights(Task.RECOMMENDATION)
        fresh = ITEM_SIGNALS[Task.RECOMMENDATION].index("fresh")
        expected = total = found = 0.0
        for each in ranked:
            if each.simulated:
                choice = each.choice
                is_fresh = choice.signals[:, fresh] == 1
                expected += (
                    choice.weight
                    * relevance(choice.signals @ item, float(choice.nothing @ nothing))[is_fresh].sum()
                )
                found += choice.weight * (choice.target is not None and bool(is_fresh[choice.target]))
                total += choice.weight
        assert expected / total == pytest.approx(found / total, abs=0.03)
        of_fresh.append(expected / total)
    assert of_fresh[1] > 3 * of_fresh[0]
    again = shutil.copytree(published, tmp_path / "bundle")
    _, first = fuse_bundle(again, data, fresh_share=0.4, console=QUIET)
    _, second = fuse_bundle(again, data, console=QUIET)
    assert second == first
    assert first.tasks[Task.SEARCH].figures["fresh_share"] == 0.4


def test_fuse_makes_the_next_version_and_rollback_takes_it_back(
    data: Path, tmp_path: Path, published: Path
) -> None:
    bundle = shutil.copytree(published, tmp_path / "bundle")
    before = Bundle.open(bundle).index
    version, fusion = fuse_bundle(bundle, data, console=QUIET)
    after = Bundle.open(bundle).index
    assert after.version == version != before.version
    assert after.pool is not None
    assert after.pool.fusion == fusion
    first = before.pool.fusion  # type: ignore[union-attr]
    assert first is not None
    for task in Task:  # the engine that trained and the one that was opened differ in the last bits
        assert fusion.tasks[task].weights == pytest.approx(first.tasks[task].weights, abs=1e-4)
        assert fusion.tasks[task].cutoff == pytest.approx(first.tasks[task].cutoff, abs=1e-4)
        assert fusion.tasks[task].figures == first.tasks[task].figures
    np.testing.assert_array_equal(after.trie.codes(), before.trie.codes())
    rollback_index(bundle, before.version)
    assert Bundle.open(bundle).index.version == before.version


def test_fuse_gives_an_older_bundle_a_pool_and_keeps_later_items_fresh(
    data: Path, tmp_path: Path, published: Path
) -> None:
    bundle = shutil.copytree(published, tmp_path / "bundle")
    item = Item("violet-hat", "violet hat", categories=("hat",))
    opened = Bundle.open(bundle)
    update_index(opened, [item], [], lambda items: np.ones((len(items), 384), np.float32))
    fuse_bundle(bundle, data, console=QUIET)
    index = Bundle.open(bundle).index
    assert index.pool is not None
    assert index.pool.fresh.tolist() == [False] * 30 + [True]
    engine = TorchEngine.open(Bundle.open(bundle))
    pool = Pool.gather(index.pool, engine.everything, "violet hat", [])
    assert pool.sources[pool.rows.tolist().index(30)] == "fresh"
    assert 30 not in pool.to_score


def test_items_that_the_log_cannot_hold_do_not_teach_that_nobody_takes_new_items(
    published: Path, data: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(published, tmp_path / "bundle")
    _, before = fuse_bundle(bundle, data, console=QUIET)
    catalogue = DataSet.load(data).catalogue
    items = [Item(f"new-{k}", item.title, categories=item.categories) for k, item in enumerate(catalogue)]
    update_index(Bundle.open(bundle), items, [], lambda items: np.ones((len(items), 384), np.float32))
    _, after = fuse_bundle(bundle, data, console=QUIET)
    for task in Task:  # words weigh a little differently in a larger catalogue
        found, expected = after.tasks[task].weights, before.tasks[task].weights
        assert found["fresh"] == pytest.approx(expected["fresh"], abs=0.5)


def test_a_part_of_the_trained_items_is_refused(published: Path, data: Path, tmp_path: Path) -> None:
    whole = DataSet.load(data)
    users = [user for user in whole.users if max(event.item for event in user.events) < 25]
    part = DataSet(whole.info, type(whole.catalogue)(list(whole.catalogue)[:25]), users)
    part.save(tmp_path / "part")
    with pytest.raises(EvaluationError, match="25 of the 30 items"):
        fuse_bundle(published, tmp_path / "part", console=QUIET)


def test_another_data_set_is_refused(published: Path, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other")
    dataset = DataSet.load(other)
    items = [Item(f"x{k}", item.title) for k, item in enumerate(dataset.catalogue)]
    DataSet(dataset.info, type(dataset.catalogue)(items), dataset.users).save(other, force=True)
    with pytest.raises(EvaluationError, match="different catalogues"):
        fuse_bundle(published, other, console=QUIET)


def test_pools_do_not_depend_on_the_batch(published: Path, data: Path) -> None:
    bundle, cases = Bundle.open(published), leave_one_out(DataSet.load(data)).test[:12]
    assert bundle.index.pool is not None
    engine = TorchEngine.open(bundle)
    cases = cases_of(Task.SEARCH, cases)
    one, many = (
        rank_pools(engine, bundle.encoder, bundle.index.pool, cases, Task.SEARCH, batch=size)[0]
        for size in (1, 12)
    )
    assert [each.items for each in one] == [each.items for each in many]
    assert target_ranks(one, cases).tolist() == target_ranks(many, cases).tolist()
