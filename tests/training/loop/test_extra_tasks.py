"""Extra tasks: what their samples say, how often and when they come, and what is learned from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.batches import CATALOGUE, ENCODER, IDENTIFIERS, TOKENIZER, VOCABULARY, in_rows, source
from support.bundles import make_model
from support.histories import histories
from support.t5 import make_t5
from support.walks import settings

from index.catalogue import Catalogue, Item
from index.sequence.encoder import TASKS, TEXT, Sample
from index.sequence.events import Event, Task
from index.words import words
from training.config import ConfigError
from training.config.extra_task import WRITES, ExtraTask
from training.errors import UserError
from training.loop.batches import BatchSource
from training.loop.extra_tasks import ExtraTasks, check_tasks
from training.loop.losses import item_losses
from training.loop.pairs import Pairs
from training.loop.parts import pad, parts_of

PAIRS = Pairs(ENCODER, start=0, targets=3)
EVERY = [(read, write) for read, written in WRITES.items() for write in written]
ITEM_OF = {tuple(codes): row for row, codes in enumerate(IDENTIFIERS.codes.tolist())}


def task(read: str, write: str, share: float = 1.0, **more: Any) -> ExtraTask:
    return ExtraTask(read=read, write=write, share=share, **more)  # type: ignore[arg-type]


def batches_of(tasks: Sequence[ExtraTask], pairs: Pairs | None = None, **options: Any) -> BatchSource:
    extra = ExtraTasks(tasks, CATALOGUE, ENCODER, pairs, options.get("tasks", tuple(Task)))
    return source(extra=extra, pairs=pairs, **options)


def extras(
    tasks: Sequence[ExtraTask], pairs: Pairs | None = None, done: float = 1.0, **options: Any
) -> list[Sample]:
    """Return the samples of an epoch that the log alone would not have."""
    with_extra = list(batches_of(tasks, pairs, **options).samples(0, lambda: done))
    plain = [len(each) for each in batches_of([], pairs, **options).samples(0, lambda: done)]
    return [sample for batch, count in zip(with_extra, plain, strict=True) for sample in batch[count:]]


def read_by(sample: Sample) -> list[int]:
    """Return the tokens before the target."""
    where = np.flatnonzero(sample.level != -1)[0]
    return sample.prompt.tolist() or sample.ids[:where].tolist()


def written_by(sample: Sample) -> str | int:
    """Return the text or the catalogue row that is the target."""
    if (sample.level == TEXT).any():
        return str(TOKENIZER.decode(sample.ids[sample.level == TEXT])).strip()
    codes = sample.ids[sample.level >= 0] - VOCABULARY.first_code
    assert sample.item[sample.level == 0].tolist() == [ITEM_OF[tuple(codes.tolist())]]
    return ITEM_OF[tuple(codes.tolist())]


def event_tokens(event: Event) -> list[int]:
    return ENCODER.sample([event]).ids.tolist()


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["decoder", "encoder-decoder"])
@pytest.mark.parametrize(("read", "write"), EVERY)
def test_what_is_read_leads_to_what_is_written(read: str, write: str, pairs: Pairs | None) -> None:
    samples = extras([task(read, write)], pairs)
    assert len(samples) > 30
    logged = [(history[:k], event) for history in histories() for k, event in enumerate(history)]
    marker = VOCABULARY.markers
    for sample in samples:
        tokens, written = read_by(sample), written_by(sample)
        if write == "title":
            row = next(row for row in range(60) if ENCODER.identifier(row) == tokens[1:-1])
            assert (written, tokens[-1]) == (CATALOGUE[row].title, marker["item"])
        elif write == "query":
            assert tokens[-1] == marker["search"]
            known = {
                "identifier": [
                    event_tokens(Event(event.item)) for _, event in logged if event.query == written
                ],
                "history": [
                    [t for each in before[-9:] for t in event_tokens(each)]
                    for before, event in logged
                    if event.query == written
                ],
            }
            if read in known:
                assert tokens[:-1] in known[read]
            else:
                said = [CATALOGUE[event.item] for _, event in logged if event.query == written]
                texts = [item.title if read == "title" else item.text() for item in said]
                assert tokens[1:-1] in [list(ENCODER.encode_text(text)) for text in texts]
        elif read == "history":
            answered = [before for before, event in logged if event.item == written]
            prompts = [ENCODER.prompt(before, q).ids for before in answered for q in (None, *QUERIES)]
            assert tokens in prompts
        else:
            text = TOKENIZER.decode(tokens[1:-1]).strip()
            assert (tokens[0], tokens[-1]) == (marker["search"], marker["item"])
            assert isinstance(written, int)
            item = CATALOGUE[written]
            if read == "query":
                assert (written, text) in {(event.item, event.query) for _, event in logged}
            elif read == "words":
                assert set(text.split()) <= set(words(item.text()))
            else:
                assert tokens[1:-1] == list(
                    ENCODER.encode_text(item.title if read == "title" else item.text())
                )
    assert len({written_by(sample) for sample in samples}) >= 3
    knowledge = read in ("title", "text", "words", "identifier") and write in ("identifier", "title")
    assert {sample.knowledge for sample in samples} == {knowledge}


QUERIES = ("comedy", "golden river", "western 1950s")


def test_the_share_is_of_the_logged_items_and_the_loss_is_of_the_task_that_is_helped() -> None:
    items = sum(map(len, histories()))
    plain = sum((Counter(b.targets) for b in batches_of([]).epoch(0)), Counter())
    for helps, grown in (
        (Task.SEARCH, Task.SEARCH),
        (Task.RECOMMENDATION, Task.RECOMMENDATION),
        (None, Task.SEARCH),
    ):
        for read, write in (("title", "identifier"), ("identifier", "title")):
            found = batches_of([task(read, write, 0.5, helps=helps)]).epoch(0)
            more = sum((Counter(b.targets) for b in found), Counter()) - plain
            assert set(more) == {grown}
            assert abs(more[grown] - 0.5 * items) < 0.1 * items
    own = extras([task("history", "identifier")])
    counts = Counter(TASKS[sample.task[-1]] for sample in own)
    assert min(counts.values()) > 0.3 * len(own)  # an item of a history helps its own task
    searches = extras([task("history", "identifier", helps="search")])
    assert {TASKS[sample.task[-1]] for sample in searches} == {Task.SEARCH}


def test_a_history_may_be_read_without_the_events_of_a_task() -> None:
    asked, taken = VOCABULARY.markers["search"], VOCABULARY.markers["recommendation"]
    for events, absent in (("search", taken), ("recommendation", asked)):
        samples = extras([task("history", "query", events=events)])
        assert all(absent not in read_by(sample)[:-1] for sample in samples)
        assert any(len(read_by(sample)) > 1 for sample in samples)


def test_draws_are_a_function_of_the_step_and_leave_the_log_as_it_is() -> None:
    tasks = [task("words", "identifier", 0.5, until=0.5), task("query", "identifier", 0.5, after=0.2)]

    def drawn(done: float, **options: Any) -> list[list[list[int]]]:
        return [
            [s.ids.tolist() for s in batch] for batch in batches_of(tasks, **options).samples(3, lambda: done)
        ]

    assert drawn(0.3) == drawn(0.3)
    assert drawn(0.3) != drawn(0.3, seed=1)
    plain = [[s.ids.tolist() for s in batch] for batch in batches_of([]).samples(3)]
    for done in (0.0, 0.3, 0.9):
        assert [b[: len(p)] for b, p in zip(drawn(done), plain, strict=True)] == plain
    early, middle, late = drawn(0.0), drawn(0.3), drawn(0.9)
    for k, log in enumerate(plain):  # the middle has what both have
        assert middle[k] == early[k] + late[k][len(log) :]
        assert len(early[k]) > len(log)


def test_stages_begin_and_end_by_the_share_of_the_training() -> None:
    tasks = [
        task("text", "identifier", until=0.3),
        task("words", "identifier", after=0.3, until=0.6),
    ]
    stages = batches_of(tasks, log_after=0.6)
    asked = []

    def done() -> float:
        asked.append(len(asked) / stages.steps_per_epoch)
        return asked[-1]

    lengths = []
    for batch in stages.samples(0, done):
        lengths.append({len(sample) > 1 and int((sample.level == 0).sum()) for sample in batch})
    assert len(asked) == stages.steps_per_epoch
    alone = [share < 0.6 for share in asked]
    assert [max(each) == 1 for each in lengths] == alone  # samples of one target until the log begins
    whole = sum((Counter(b.targets) for b in batches_of(tasks, log_after=0.6).epoch(0)), Counter())
    assert whole.total() == sum(map(len, histories()))


@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["decoder", "encoder-decoder"])
def test_the_loss_of_a_text_is_the_mean_over_its_tokens(pairs: Pairs | None, normalisation: str) -> None:
    model = make_model(VOCABULARY.size) if pairs is None else make_t5(VOCABULARY.size)
    model.eval()
    asks = [task("identifier", "title", 0.05), task("history", "query", 0.05, helps="recommendation")]
    samples = [*extras([*asks, task("title", "identifier", 0.05)], pairs)]
    assert {bool((s.level == TEXT).any()) for s in samples} == {True, False}
    expected = dict.fromkeys(Task, 0.0)
    for sample in samples:  # one by one, full logits
        ids = torch.from_numpy(sample.ids)[None]
        if pairs is None:
            logits = model(ids).logits[0].detach()
        else:
            logits = (
                model(input_ids=torch.from_numpy(sample.prompt)[None], decoder_input_ids=ids)
                .logits[0]
                .detach()
            )
        texts = int((sample.level == TEXT).sum())
        for t, level in enumerate(sample.level.tolist()):
            if level == -1:
                continue
            a, b = (0, VOCABULARY.first_added) if level == TEXT else VOCABULARY.span(level)
            if level != TEXT and normalisation == "vocabulary":
                a, b = 0, VOCABULARY.size
            nll = F.cross_entropy(logits[t - 1, a:b], torch.tensor(int(sample.ids[t] - a)))
            expected[TASKS[sample.task[t]]] += float(nll) / (texts or 1)
    for parts in ([pad(samples)], parts_of(samples, 400, 1), in_rows([pad(samples)])):
        totals = Counter()
        for part in parts:
            totals.update(
                {k: float(v) for k, v in item_losses(model, VOCABULARY, part, normalisation).items()}
            )
        for each in Task:
            assert totals[each] == pytest.approx(expected[each], rel=1e-4)


def test_a_model_learns_to_write_the_title_of_an_identifier() -> None:
    torch.manual_seed(0)
    model = make_model(VOCABULARY.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def sample(row: int, title: str) -> Sample:
        return ENCODER.writing([Event(row)], title, "item", Task.SEARCH)

    own = [sample(row, CATALOGUE[row].title) for row in range(20)]
    others = [sample(row, CATALOGUE[(row + 7) % 20].title) for row in range(20)]

    def loss(samples: list[Sample]) -> torch.Tensor:
        return item_losses(model, VOCABULARY, pad(samples), "level")[Task.SEARCH] / len(samples)

    for _ in range(40):
        optimizer.zero_grad()
        loss(own).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(own) < 0.5 * loss(others)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("{read: words, write: title, share: 1}", r"extra_tasks\.0: .*after a words no title.*identifier"),
        ("{read: title, write: identifier, share: 1, after: 0.5, until: 0.4}", "ends .* before it begins"),
        ("{read: title, write: identifier, share: 1, events: search}", "'events' is for histories"),
        ("{read: magic, write: identifier, share: 1}", r"extra_tasks\.0\.read"),
        ("{read: title, write: identifier}", r"extra_tasks\.0\.share"),
        ("title", r"extra_tasks\.0"),
        ("{read: title", "not YAML"),
    ],
)
def test_tasks_that_cannot_be_are_refused(tasks: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings({"sequence.extra_tasks": tasks})


def test_a_time_without_anything_to_train_and_a_task_that_nobody_trains_are_refused() -> None:
    early = {"read": "text", "write": "identifier", "share": 1, "until": 0.3}
    settings({"sequence": {"extra_tasks": [early], "log_after": 0.3, "title_queries": 0}})
    with pytest.raises(ConfigError, match=r"nothing is trained from 0\.3 .*log_after 0\.5"):
        settings({"sequence": {"extra_tasks": [early], "log_after": 0.5, "title_queries": 0}})
    with pytest.raises(ConfigError, match=r"nothing is trained from 0\.0"):
        settings({"sequence": {"log_after": 0.5, "title_queries": 0}})
    with pytest.raises(ConfigError, match=r"extra_tasks\.0 helps search.*helps: recommendation"):
        settings({"sequence": {"extra_tasks": [early], "tasks": "recommendation"}})
    settings({"sequence": {"extra_tasks": [early | {"helps": "recommendation"}], "tasks": "recommendation"}})


def test_data_that_lack_what_a_task_needs_are_refused_with_the_way_on() -> None:
    taken = [[Event(0), Event(1)]]
    bare = Catalogue([Item("1", "One"), Item("2", "Two")])
    for read, write in (("query", "identifier"), ("identifier", "query"), ("history", "query")):
        with pytest.raises(UserError, match=r"extra_tasks\.0 .*import a log with searches"):
            check_tasks([task(read, write)], CATALOGUE, taken)
        check_tasks([task(read, write)], CATALOGUE, histories())
    with pytest.raises(UserError, match=r"titles only.*'title'"):
        check_tasks([task("text", "identifier")], bare, taken)
    check_tasks(
        [task("title", "identifier"), task("identifier", "title"), task("words", "identifier")], bare, taken
    )
    with pytest.raises(UserError, match="titles with words"):
        check_tasks([task("identifier", "title")], Catalogue([Item("1", "!!!")]), taken)
