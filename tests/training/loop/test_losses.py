"""The two-task loss compared with its definition, and batches that contain exactly the data."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.batches import CATALOGUE, ENCODER, IDENTIFIERS, TOKENIZER, VOCABULARY, in_rows, source
from support.bundles import make_model
from support.histories import histories

from index.sequence.encoder import TASKS, SequenceEncoder
from index.sequence.events import Event, Task
from training.config import TrainConfig
from training.loop import batches
from training.loop.batches import BatchSource
from training.loop.losses import item_losses
from training.loop.parts import pad
from training.loop.schedule import rate_factor
from training.loop.trainer import Trainer
from training.loop.word_queries import WordQueries
from training.methods.registry import make_method


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_the_loss_is_the_sum_over_items_of_their_log_probabilities(arch: str, normalisation: str) -> None:
    model = make_model(VOCABULARY.size, arch)
    samples = [ENCODER.sample(h) for h in histories(6)]
    expected = dict.fromkeys(Task, 0.0)
    for sample in samples:  # one by one, no padding, full logits
        logits = model(torch.from_numpy(sample.ids)[None]).logits[0].detach()
        for t, level in enumerate(sample.level.tolist()):
            if level >= 0:
                a, b = VOCABULARY.span(level) if normalisation == "level" else (0, VOCABULARY.size)
                nll = F.cross_entropy(logits[t - 1, a:b], torch.tensor(int(sample.ids[t] - a)))
                expected[TASKS[sample.task[t]]] += float(nll)
    losses = item_losses(model, VOCABULARY, pad(samples), normalisation)
    for task in Task:
        assert losses[task].item() == pytest.approx(expected[task], rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_divides_the_logits_of_codes_and_not_those_of_texts(temperature: float) -> None:
    model = make_model(VOCABULARY.size)
    items = ENCODER.sample(histories(1)[0])
    text = ENCODER.writing([Event(3)], CATALOGUE[3].title, "item", Task.SEARCH)
    hot = copy.deepcopy(model)  # whose logits are divided by the temperature
    hot.get_output_embeddings().weight = torch.nn.Parameter(hot.get_output_embeddings().weight / temperature)
    found = item_losses(model, VOCABULARY, pad([items]), "level", temperature=temperature)
    expected = item_losses(hot, VOCABULARY, pad([items]), "level")
    plain = item_losses(model, VOCABULARY, pad([items]), "level")
    for task in found:
        assert found[task].item() == pytest.approx(expected[task].item(), rel=1e-5)
        assert found[task].item() != pytest.approx(plain[task].item(), rel=1e-3)
    of_text = [
        item_losses(model, VOCABULARY, pad([text]), "level", temperature=t) for t in (1.0, temperature)
    ]
    assert of_text[0][Task.SEARCH].item() == of_text[1][Task.SEARCH].item()


def test_parts_add_up_to_the_gradient_of_the_whole_batch() -> None:
    model = make_model(VOCABULARY.size)
    batch = next(iter(source(title_queries=0.2).epoch(0)))
    assert len(batch.parts) > 1

    def gradient(parts: list) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            sum(item_losses(model, VOCABULARY, part, "level").values()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.allclose(gradient(batch.parts), gradient(in_rows(batch.parts)), rtol=1e-3, atol=1e-5)


def items_of(batch) -> Counter:  # type: ignore[no-untyped-def]
    found: Counter = Counter()
    for part in batch.parts:
        where = part.level == 2  # the last code of an item
        rows = torch.nonzero(where)
        for r, t in rows.tolist():
            codes = part.ids[r, t - 2 : t + 1].numpy() - VOCABULARY.first_code
            found[tuple(codes.tolist())] += 1
    return found


def test_an_epoch_trains_on_every_interaction_once() -> None:
    expected = Counter(tuple(IDENTIFIERS.codes[e.item].tolist()) for h in histories() for e in h)
    for epoch in range(3):
        found = sum((items_of(batch) for batch in source().epoch(epoch)), Counter())
        assert found == expected
        targets = sum((Counter(batch.targets) for batch in source().epoch(epoch)), Counter())
        assert targets.total() == expected.total()


def test_no_event_is_lost_where_the_token_budget_is_smaller_than_the_event_budget() -> None:
    encoder = SequenceEncoder(TOKENIZER, VOCABULARY, IDENTIFIERS.codes, max_tokens=40, max_events=10)
    narrow = BatchSource(encoder, histories(), batch_size=8, part_tokens=400)
    expected = Counter(tuple(IDENTIFIERS.codes[e.item].tolist()) for h in histories() for e in h)
    for epoch in range(2):
        assert sum((items_of(batch) for batch in narrow.epoch(epoch)), Counter()) == expected


def test_a_log_of_several_groups_is_read_once_an_epoch_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = Counter(tuple(IDENTIFIERS.codes[e.item].tolist()) for h in histories() for e in h)
    first = {}
    whole = source().steps_per_epoch
    for group in (3, 9):
        monkeypatch.setattr(batches, "GROUP", group)
        grouped = source(batch_size=2)
        assert abs(grouped.steps_per_epoch - 4 * whole) <= whole  # of a sample of the log
        for epoch in range(2):
            drawn = list(grouped.epoch(epoch))
            assert len(drawn) == grouped.steps_per_epoch
            assert sum((items_of(batch) for batch in drawn), Counter()) == expected
            first[group, epoch] = drawn[0].parts[0].ids.tolist()
        again = next(source(batch_size=2).epoch(1))
        assert again.parts[0].ids.tolist() == first[group, 1]
    assert len({str(ids) for ids in first.values()}) == 4


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    def ids(seed: int, epoch: int) -> list[list[int]]:
        return [
            part.ids.flatten().tolist() for batch in source(seed=seed).epoch(epoch) for part in batch.parts
        ]

    assert ids(0, 1) == ids(0, 1)
    assert ids(0, 1) != ids(0, 2)
    assert ids(0, 1) != ids(1, 1)


def test_title_queries_and_query_dropout_do_what_they_say() -> None:
    interactions = sum(len(h) for h in histories())
    plain = sum((Counter(b.targets) for b in source().epoch(0)), Counter())
    titled = sum((Counter(b.targets) for b in source(title_queries=1.0).epoch(0)), Counter())
    assert titled[Task.RECOMMENDATION] == plain[Task.RECOMMENDATION]
    assert abs(titled[Task.SEARCH] - plain[Task.SEARCH] - interactions) < 0.1 * interactions
    hidden = sum((Counter(b.targets) for b in source(query_dropout=1.0).epoch(0)), Counter())
    assert (hidden[Task.RECOMMENDATION], hidden[Task.SEARCH]) == (interactions, 0)
    words = WordQueries(CATALOGUE, 1.0)
    searched = sum((Counter(b.targets) for b in source(word_queries=words).epoch(0)), Counter())
    assert (searched[Task.RECOMMENDATION], searched[Task.SEARCH]) == (0, interactions)
    swapped = sum(
        (Counter(b.targets) for b in source(word_queries=words, query_dropout=1.0).epoch(0)), Counter()
    )
    assert swapped == {
        Task.SEARCH: plain[Task.RECOMMENDATION],
        Task.RECOMMENDATION: plain[Task.SEARCH],
    }


@pytest.mark.parametrize("task", list(Task))
def test_a_model_of_one_task_reads_the_events_of_both_and_has_targets_of_its_own(task: Task) -> None:
    one, both = source(query_dropout=0.3, tasks=(task,)), source(query_dropout=0.3)
    for mine, all_of_them in zip(
        one.samples(1), both.samples(1), strict=True
    ):  # as many steps, the same draws
        for sample, of_both in zip(mine, all_of_them, strict=True):
            assert np.array_equal(sample.ids, of_both.ids)
            kept = of_both.task == TASKS.index(task)
            assert np.array_equal(sample.level, np.where(kept, of_both.level, -1))
            assert np.array_equal(sample.item, np.where(kept, of_both.item, -1))
    titled = sum((Counter(b.targets) for b in source(title_queries=0.5, tasks=(task,)).epoch(0)), Counter())
    assert set(+titled) == {task}


def test_a_step_without_an_item_of_the_trained_task_changes_nothing() -> None:
    recommended = [[Event(event.item) for event in history] for history in histories()]
    searches = BatchSource(ENCODER, recommended, batch_size=8, part_tokens=500, tasks=(Task.SEARCH,))
    model = make_model(VOCABULARY.size)
    method = make_method(model, TrainConfig(), VOCABULARY.first_added)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(Path(), TrainConfig(), model, VOCABULARY, method, searches, validator=None)  # type: ignore[arg-type]
    for batch in searches.epoch(0):
        assert sum(batch.targets.values()) == 0
        trainer._step("", batch)
    assert trainer.progress.step == searches.steps_per_epoch
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_event_dropout_leaves_out_other_events_each_epoch_and_never_a_whole_history() -> None:
    every = Counter(tuple(IDENTIFIERS.codes[e.item].tolist()) for h in histories() for e in h)
    dropped = source(event_dropout=0.4)
    epochs = [sum((items_of(batch) for batch in dropped.epoch(epoch)), Counter()) for epoch in range(3)]
    for found in epochs:
        assert not found - every  # nothing but logged events
        assert found.total() / every.total() == pytest.approx(0.6, abs=0.1)
    assert epochs[0] != epochs[1] != epochs[2]
    alone = sum((Counter(batch.targets) for batch in source(event_dropout=0.99).epoch(0)), Counter())
    assert alone.total() >= len([h for h in histories() if h])


def test_parts_respect_their_budget() -> None:
    for batch in source(part_tokens=300).epoch(0):
        assert all(part.ids.numel() <= 300 or len(part.ids) == 1 for part in batch.parts)


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_factor(p, 0.1, 0.05) for p in np.linspace(0, 1, 101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1)
    assert int(np.argmax(rates)) == 10
    assert rates[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rate_factor(7.0, 0.1, 0.05) == pytest.approx(0.05)
