"""T5 as backbone: pairs, losses, every tuning method, a run from data to a served bundle, and refused settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from support.batches import titles
from support.bundles import make_catalogue, make_identifiers, make_spelled, make_tokenizer, text_vectors
from support.histories import histories
from support.t5 import KINDS, make_t5
from support.walks import make_data
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from gems import KnowledgeBasis, find_linears
from index.bundle.bundle import Bundle
from index.sequence.encoder import TASKS, SequenceEncoder
from index.sequence.events import Event, Task
from index.sequence.language_model import LanguageModelError, load_language_model
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.trie import Trie
from server.engine.contract import EngineError, RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.engine.vllm_backend.engine import VllmEngine
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.evaluation.evaluate import evaluate
from training.loop.batches import Batch, BatchSource
from training.loop.extra_tasks import ExtraTasks
from training.loop.losses import item_losses
from training.loop.pairs import Pairs
from training.loop.parts import Part, pad
from training.methods.registry import make_method
from training.model.backbones import BackboneError, load_backbone
from training.model.extension import extend_backbone
from training.model.rows import AddedRows
from training.pipeline import train
from training.prepare.knowledge_basis import knowledge_path
from training.prepare.preparation import open_prepared
from training.preservation.general import general_figures
from training.run.server_process import ServerProcess
from training.settings import merged

CATALOGUE = make_catalogue(60)
IDENTIFIERS = make_identifiers(60)
TOKENIZER = make_tokenizer(CATALOGUE.texts())
VOCABULARY = IdentifierVocabulary.for_tokenizer(TOKENIZER, IDENTIFIERS.codebook_sizes)
VOCABULARY.add_to(TOKENIZER)
ENCODER = SequenceEncoder(TOKENIZER, VOCABULARY, IDENTIFIERS.codes, max_tokens=120, max_events=10)
PAIRS = Pairs(ENCODER, start=0, targets=3)
SHARES = dict.fromkeys(Task, 0.5)
QUIET = Console(quiet=True)

TIGER: dict[str, Any] = {
    "method": "full", "threads": 1,
    "backbone": {"name": "t5-tiger", "hidden": 32, "heads": 2, "layers": 1, "text_vocabulary": 400},
    "identifiers": {"codebooks": (4, 4)},
    "sequence": {"max_events": 8, "max_tokens": 128, "targets": 8, "title_queries": 0.2},
    "optimiser": {"batch_size": 16, "epochs": 8, "learning_rate": 1e-2},
    "validation": {"cases": 40, "patience": 100, "conflict_cases": 8, "every": 2},
}  # fmt: skip


def some_part(count: int = 8) -> Part:
    """Return pairs of both tasks with prompts of different lengths."""
    chosen = [(history[:k], history[k]) for history in histories(count) for k in [len(history) - 1]]
    return pad([PAIRS.pair(history, event) for history, event in chosen])


def source(targets: int, title_queries: float = 0.0, **options: float) -> BatchSource:
    settings = {"batch_size": 8, "part_tokens": 600} | options
    pairs = Pairs(ENCODER, 0, targets)
    extra = ExtraTasks(titles(title_queries), CATALOGUE, ENCODER, pairs)
    return BatchSource(ENCODER, histories(), pairs=pairs, extra=extra, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_the_loss_is_what_the_models_own_forward_says(kind: str, normalisation: str) -> None:
    model = make_t5(VOCABULARY.size, kind)
    expected = dict.fromkeys(Task, 0.0)
    for history in histories(8):  # one by one, without padding, all logits
        event = history[-1]
        prompt = ENCODER.prompt(history[:-1], event.query)
        written = ENCODER.identifier(event.item)
        logits = model(
            input_ids=torch.tensor([prompt.ids]), decoder_input_ids=torch.tensor([[0, *written[:-1]]])
        ).logits[0].detach()  # fmt: skip
        for level, token in enumerate(written):
            first, last = VOCABULARY.span(level) if normalisation == "level" else (0, VOCABULARY.size)
            nll = F.cross_entropy(logits[level, first:last], torch.tensor(token - first))
            expected[event.behaviour] += float(nll)
    losses = item_losses(model, VOCABULARY, some_part(), normalisation)
    assert set(losses) == set(Task)
    for task in Task:
        assert losses[task].item() == pytest.approx(expected[task], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_scores_are_the_losses_of_spelled_titles(kind: str) -> None:
    """Titles have up to six tokens; some end early."""
    tokenizer = make_tokenizer(CATALOGUE.texts())
    spelled = make_spelled([item.title for item in CATALOGUE], tokenizer, 6)
    vocabulary = IdentifierVocabulary.for_tokenizer(tokenizer, spelled.codebook_sizes, spelled=True)
    vocabulary.add_to(tokenizer)
    encoder = SequenceEncoder(tokenizer, vocabulary, spelled.codes, max_tokens=120)
    assert len({len(encoder.identifier(item)) for item in range(60)}) > 1
    model = make_t5(vocabulary.size, kind)
    history = histories()[0][:4]
    request = RankRequest(encoder.prompt(history, "golden river").ids, 60, 60)
    ranking = TorchEngine(model, Trie.build(spelled.codes), vocabulary).rank([request])[0]
    assert sorted(ranking.items) == list(range(60))
    asked = [encoder.pair(history, Event(item, Task.SEARCH, "golden river"), 0) for item in ranking.items]
    with torch.inference_mode():
        losses = [float(item_losses(model, vocabulary, pad([pair]), "level")[Task.SEARCH]) for pair in asked]
    assert np.allclose(ranking.scores, -np.array(losses), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_over_parts_and_reach_every_weight(kind: str) -> None:
    model = make_t5(VOCABULARY.size, kind)
    batch = next(iter(source(3, title_queries=0.3).epoch(0)))
    assert len(batch.parts) > 1
    rows = [
        Part(
            p.ids[k : k + 1],
            p.level[k : k + 1],
            p.task[k : k + 1],
            p.item[k : k + 1],
            p.prompt[k : k + 1],
            p.attended[k : k + 1],
        )
        for p in batch.parts
        for k in range(len(p.ids))
    ]

    def gradients(parts: list[Part]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for part in parts:
            sum(item_losses(model, VOCABULARY, part, "level").values()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    whole, alone = gradients(batch.parts), gradients(rows)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, alone[name], rtol=1e-3, atol=1e-3 * float(gradient.abs().max())), name
        assert gradient.abs().max() > 0, name


def items_of(batch: Batch) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple((row[1:] - torch.from_numpy(VOCABULARY.first_code)).tolist())
        for part in batch.parts
        for row in part.ids
    )


def test_without_a_limit_an_epoch_trains_on_every_interaction_once() -> None:
    expected = Counter(tuple(IDENTIFIERS.codes[e.item].tolist()) for h in histories() for e in h)
    for epoch in range(2):
        assert sum((items_of(batch) for batch in source(50).epoch(epoch)), Counter()) == expected


def test_a_limit_draws_other_targets_each_epoch_and_keeps_all_that_came_before_them() -> None:
    batches = source(2)
    first, again, other = (
        [part.ids.tolist() for batch in batches.epoch(epoch) for part in batch.parts] for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != other
    stretches = sum(-(-len(history) // ENCODER.max_events) for history in histories())
    drawn = sum(sum(batch.targets.values()) for batch in batches.epoch(0))
    assert 1.5 * stretches < drawn <= 2 * (stretches + len(histories()))
    asked = {  # exactly the requests to the engine
        (tuple(ENCODER.prompt(history[:k], event.query).ids), tuple(ENCODER.identifier(event.item)))
        for history in histories()
        for k, event in enumerate(history)
    }
    for batch in batches.epoch(0):
        for part in batch.parts:
            for prompt, attended, ids in zip(part.prompt, part.attended, part.ids, strict=True):
                assert (tuple(prompt[attended].tolist()), tuple(ids[1:].tolist())) in asked


def test_title_queries_are_a_share_of_the_targets() -> None:
    plain = sum((Counter(b.targets) for b in source(2).epoch(0)), Counter())
    titled = sum((Counter(b.targets) for b in source(2, title_queries=1.0).epoch(0)), Counter())
    assert titled.total() == pytest.approx(2 * plain.total(), rel=0.15)
    hidden = sum((Counter(b.targets) for b in source(2, query_dropout=1.0).epoch(0)), Counter())
    assert hidden[Task.SEARCH] == 0
    for task in Task:  # pairs are drawn among the events of the trained task
        alone = sum((Counter(b.targets) for b in source(2, tasks=(task,)).epoch(0)), Counter())
        assert set(+alone) == {task}
        assert alone.total() > plain[task]


@pytest.mark.parametrize("kind", KINDS)
def test_added_rows_have_the_gradients_of_the_whole_table_in_encoder_decoder_and_head(
    kind: str, tmp_path: Path
) -> None:
    make_t5(VOCABULARY.size, kind).save_pretrained(tmp_path)
    plain, split = (load_language_model(tmp_path) for _ in range(2))
    assert split.encoder.embed_tokens is not split.shared  # two modules, one weight
    known = VOCABULARY.first_added
    rows = AddedRows(split, known)
    assert len(rows.parameters) == (1 if kind == "v1.0" else 2)
    expected = sum(item_losses(plain, VOCABULARY, some_part(), "vocabulary").values())
    found = sum(item_losses(split, VOCABULARY, some_part(), "vocabulary", rows).values())
    assert torch.allclose(found, expected)
    expected.backward()
    found.backward()
    tables = [plain.shared.weight, plain.lm_head.weight]
    for parameter, table in zip(rows.parameters, tables, strict=False):
        assert torch.allclose(parameter.grad, table.grad[known:], atol=1e-4)
        assert parameter.grad.abs().sum() > 0


def folder(path: Path, kind: str, layers: int = 2) -> Path:
    """A typical T5 in a folder: more rows than tokens, and a tokenizer without items."""
    tokenizer = make_tokenizer(CATALOGUE.texts())
    make_t5(len(tokenizer) + 8, kind, layers=layers).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_keeps_its_rows_its_head_and_its_scale_when_it_gains_tokens(
    kind: str, tmp_path: Path
) -> None:
    backbone = load_backbone(TrainConfig.combined({"backbone.name": str(folder(tmp_path / "t5", kind))}), [])
    model = backbone.model
    known = len(backbone.tokenizer)
    ids, written = torch.tensor([[5, 77, 123]]), torch.tensor([[0, 9]])
    before = model(input_ids=ids, decoder_input_ids=written).logits[..., :known]
    titles = [item.title for item in CATALOGUE]
    vocabulary = extend_backbone(backbone, IDENTIFIERS, titles, np.zeros((60, 4), np.float32))
    model.save_pretrained(tmp_path / "extended")
    again = load_language_model(tmp_path / "extended")
    for extended in (model, again):
        after = extended(input_ids=ids, decoder_input_ids=written).logits
        assert after.shape[-1] == vocabulary.size
        assert torch.allclose(after[..., :known], before, atol=1e-5)
        assert (extended.lm_head.weight is extended.shared.weight) == (kind == "v1.0")
        first = int(vocabulary.first_code[0])
        rows = extended.lm_head.weight[first : vocabulary.size]
        assert rows.abs().sum(1).min() > 0  # means of titles, complete
        assert torch.equal(rows, model.lm_head.weight[first : vocabulary.size])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gems", "v1.0"), ("gems", "v1.1"), ("lora", "v1.0"), ("lora", "v1.1"), ("subspace", "v1.0"),
        ("full", "v1.1"), ("lora-moe", "v1.1"), ("pcgrad", "v1.0"),
    ],
)  # fmt: skip
def test_every_method_lowers_the_loss_and_keeps_to_its_weights(name: str, kind: str, tmp_path: Path) -> None:
    make_t5(VOCABULARY.size, kind).save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    config = TrainConfig.combined({
        "backbone.name": "folder", "method": name, "knowledge.null_space": False, "lora.rank": 4,
        "gems": {"rank_share": 0.25, "refresh_every": 5},
    })  # fmt: skip
    method = make_method(model, config, VOCABULARY.first_added)
    known = model.shared.weight[: VOCABULARY.first_added].detach().clone()
    linears = {
        k: linear.weight.detach().clone()
        for k, linear in find_linears(make_t5(VOCABULARY.size, kind)).items()
    }
    part = some_part(16)
    count = {task: int((part.task[:, 0] == k).sum()) for k, task in enumerate(TASKS)}
    losses = []
    for _ in range(10):
        sums = item_losses(model, VOCABULARY, part, "level", method.rows)
        losses.append(sum(float(total.detach()) for total in sums.values()) / 16)
        method.backward({task: total / count[task] for task, total in sums.items()}, SHARES)
        method.step(3e-3)
    assert losses[-1] < 0.8 * losses[0]
    if name in ("full", "pcgrad"):
        return
    assert torch.equal(model.shared.weight[: VOCABULARY.first_added], known)
    if name == "lora":
        before = item_losses(model.eval(), VOCABULARY, part, "level")
        method.merge()
        after = item_losses(model, VOCABULARY, part, "level")
        assert all(torch.allclose(after[task], before[task], rtol=1e-3) for task in before)
    if name != "lora-moe":
        moved = {k for k, linear in find_linears(model.requires_grad_(True)).items() if k in linears and
                 not torch.equal(linear.weight, linears[k])}  # fmt: skip
        assert moved == set(linears)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def settings(data: Path) -> dict[str, Any]:
    """Return settings with item vectors from a file, so that no encoder has to be loaded."""
    file = data.parent / "vectors.npy"
    np.save(file, text_vectors(DataSet.load(data).catalogue.texts()))
    return merged(TIGER, {"identifiers": {"codebooks": (4, 4), "vectors": file}})


@pytest.fixture(scope="module")
def run(data: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(data, out, TrainConfig.combined(settings), console=QUIET)
    return out


def test_a_t5_from_scratch_learns_both_tasks(run: Path, data: Path) -> None:
    result = evaluate(run / "bundle", data, beam_width=30)
    assert result["search"]["hit@5"] > 2 * result["floors"]["popularity"]["search"]["hit@5"]
    assert result["recommendation"]["hit@5"] > 1.5 * result["floors"]["popularity"]["recommendation"]["hit@5"]
    with pytest.raises(EngineError, match="the torch engine serves it"):
        VllmEngine.open(Bundle.open(run / "bundle"))


@pytest.mark.slow  # a separate server with the engine of the tests above
def test_a_server_answers_from_a_t5_as_the_engine_does(run: Path) -> None:
    with ServerProcess(run / "bundle") as server:
        found = server.post("/search", {"query": "red hat", "history": [], "limit": 30})
        asked = server.post("/recommend", {"history": [{"item_id": "blue-shoes"}], "limit": 7})
    assert len(found["items"]) == 30
    assert len(asked["items"]) == 7
    bundle = Bundle.open(run / "bundle")
    request = RankRequest(bundle.encoder.prompt([], "red hat").ids, 30, 50)
    rows = TorchEngine.open(bundle).rank([request])[0].items
    expected = [bundle.index.catalogue[row].item_id for row in rows]
    assert [each["item_id"] for each in found["items"]] == expected


def test_a_run_that_is_killed_resumes_to_the_same_weights(
    run: Path, data: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BatchSource.epoch

    def broken(self: BatchSource, epoch: int, done: Callable[[], float]) -> Iterator[Batch]:
        yield from islice(whole(self, epoch, done), None if epoch < 4 else 3)
        if epoch == 4:
            raise MemoryError("killed")

    config = TrainConfig.combined(settings, {"run.checkpoint_every": 1e-4})
    monkeypatch.setattr(BatchSource, "epoch", broken)
    with pytest.raises(MemoryError):
        train(data, tmp_path / "run", config, console=QUIET)
    monkeypatch.undo()
    assert train(data, tmp_path / "run", config, resume=True, console=QUIET) is not None
    ours, theirs = (load_file(path / "bundle" / "model.safetensors") for path in (run, tmp_path / "run"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gems_on_a_folder_leaves_what_general_text_uses_alone(
    data: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The knowledge basis gives half of each window to the encoder and the rest to the decoder, like for Flan-T5."""
    catalogue = DataSet.load(data).catalogue
    tokenizer = make_tokenizer(catalogue.texts())
    make_t5(len(tokenizer) + 8, "v1.1").save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    config = TrainConfig.combined(settings, {
        "backbone": {"name": str(tmp_path / "t5"), "layers": 1}, "method": "gems", "gems.rank_share": 0.25,
        "optimiser.epochs": 2, "knowledge.tokens": 2048, "validation": {"conflict_cases": 0, "every": 2},
    })  # fmt: skip
    train(data, tmp_path / "run", config, console=QUIET)
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    model = bundle.load_model()
    assert (len(model.encoder.block), len(model.decoder.block)) == (1, 1)
    assert model.lm_head.weight is not model.shared.weight
    before = open_prepared(tmp_path / "run" / "prepared", "semantic")
    known = bundle.vocabulary.first_added
    assert torch.equal(model.shared.weight[:known], before.model.shared.weight[:known])
    assert torch.equal(model.lm_head.weight[:known], before.model.lm_head.weight[:known])
    assert not torch.equal(model.lm_head.weight[known:], before.model.lm_head.weight[known:])
    basis = KnowledgeBasis.load(knowledge_path(tmp_path / "run" / "prepared", config))
    moved = 0
    for name, linear in find_linears(model).items():
        change = linear.weight - dict(before.model.named_parameters())[name]
        kept = basis.directions(name, 0.5, linear.in_features // 4)
        assert (change @ kept).norm() < 1e-3 * change.norm() + 1e-6
        moved += bool(change.norm() > 0)
    assert moved > 8


def test_general_text_is_predicted_half_from_half(tmp_path: Path) -> None:
    model = make_t5(60, "v1.1")
    windows = np.random.default_rng(0).integers(1, 50, (5, 16))
    figures = general_figures(model, windows, 50, batch=2)
    assert figures.nll.shape == (5, 8)
    ids = torch.from_numpy(windows)
    written = torch.cat([torch.zeros(5, 1, dtype=torch.long), ids[:, 8:-1]], 1)
    with torch.inference_mode():
        logits = model(input_ids=ids[:, :8], decoder_input_ids=written).logits[..., :50]
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 8:].flatten(), reduction="none").view(5, 8)
    assert np.allclose(figures.nll, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "pcgrad", "gems"])
def test_t5_tiger_soon_knows_its_titles(method: str) -> None:
    """No single learning rate for all weights achieves this: T5's q starts at 0.02, its token table at 1."""
    size = {"hidden": 32, "heads": 2, "layers": 1, "dropout": 0.0, "text_vocabulary": 400}
    config = TrainConfig.combined({
        "method": method, "backbone": {"name": "t5-tiger"} | size, "optimiser.learning_rate": 3e-2,
        "gems.rank_share": 0.5,
    })  # fmt: skip
    titles = [item.title for item in CATALOGUE]

    def last_loss(config: TrainConfig) -> float:
        backbone = load_backbone(config, CATALOGUE.texts())
        vocabulary = extend_backbone(backbone, IDENTIFIERS, titles, text_vectors(CATALOGUE.texts()))
        encoder = SequenceEncoder(backbone.tokenizer, vocabulary, IDENTIFIERS.codes, max_tokens=120)
        asked = [encoder.pair([], Event(row, Task.SEARCH, title), 0) for row, title in enumerate(titles)]
        part, method = pad(asked), make_method(backbone.model, config, vocabulary.first_added)
        for _ in range(30):
            loss = item_losses(backbone.model, vocabulary, part, "level")[Task.SEARCH] / len(titles)
            method.backward({Task.SEARCH: loss}, {Task.SEARCH: 1.0})
            method.step(config.optimiser.learning_rate)
        return float(loss.detach())

    assert last_loss(config) < 0.2
    if method == "full":
        for rate in (1e-3, 3e-3, 1e-2, 3e-2):
            changes = {"optimiser": {"relative": False, "learning_rate": rate}}
            plain = TrainConfig.combined(config.model_dump(), changes)
            assert last_loss(plain) > 1, rate


@pytest.mark.parametrize("method", ["full", "pcgrad"])
def test_relative_steps_are_as_long_as_the_weights_are_large(method: str) -> None:
    """Adam's first step equals the learning rate, for every number with a gradient."""
    optimiser = {"relative": True, "weight_decay": 0.0}
    config = TrainConfig.combined({"backbone.name": "folder", "method": method, "optimiser": optimiser})
    model = make_t5(VOCABULARY.size, "v1.0")
    with torch.no_grad():
        model.encoder.final_layer_norm.weight.zero_()  # the smallest step lets it begin
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuning, part = make_method(model, config, VOCABULARY.first_added), some_part(16)
    tuning.backward(item_losses(model, VOCABULARY, part, "level"), SHARES)
    tuning.step(1e-2)
    lengths = {}
    for name, p in model.named_parameters():
        if p.grad is None and not torch.equal(p, before[name]):
            size = max(1e-3, float(before[name].square().mean().sqrt()))
            lengths[name] = size
            assert float((p.detach() - before[name]).abs().max()) == pytest.approx(1e-2 * size, rel=1e-2), (
                name
            )
    assert max(lengths.values()) > 30 * min(lengths.values())


def test_adapters_have_no_relative_rate() -> None:
    adapters = {"backbone.name": "t5-tiger", "method": "lora"}
    with pytest.raises(ValueError, match="adapters start at zero"):
        TrainConfig(backbone={"name": "t5-tiger"}, method="lora")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="adapters start at zero"):
        TrainConfig.combined(adapters)
    TrainConfig.combined(adapters, {"optimiser": {"relative": False, "learning_rate": 1e-3}})


def test_t5_tiger_has_the_sizes_of_the_paper_unless_told_otherwise() -> None:
    config = TrainConfig.combined({"backbone": {"name": "t5-tiger", "text_vocabulary": 300}})
    model: PreTrainedModel = load_backbone(config, CATALOGUE.texts()).model
    shape = model.config
    assert (shape.d_model, shape.d_ff, shape.num_heads, shape.d_kv) == (128, 1024, 6, 64)
    assert (len(model.encoder.block), len(model.decoder.block)) == (4, 4)
    assert (shape.dropout_rate, shape.feed_forward_proj) == (0.1, "relu")
    size = {"text_vocabulary": 300, "hidden": 64, "heads": 2, "layers": 1, "dropout": 0.0}
    other = TrainConfig.combined({"backbone": {"name": "t5-tiger"} | size})
    smaller = load_backbone(other, CATALOGUE.texts())
    assert smaller.model.config.d_model == 64
    assert smaller.tokenizer("<pad>", add_special_tokens=False).input_ids == [0]
    assert TrainConfig.combined({"backbone.name": "scratch"}).backbone.heads == 4


def test_other_encoder_decoders_and_too_many_layers_are_refused(tmp_path: Path) -> None:
    bart = BartForConditionalGeneration(BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16))  # fmt: skip
    bart.save_pretrained(tmp_path / "bart")
    make_tokenizer(CATALOGUE.texts()).save_pretrained(tmp_path / "bart")
    with pytest.raises(LanguageModelError, match="only T5"):
        load_language_model(tmp_path / "bart")
    with pytest.raises(BackboneError, match="bart is an encoder-decoder of which only T5"):
        load_backbone(TrainConfig.combined({"backbone.name": str(tmp_path / "bart")}), [])
    path = folder(tmp_path / "t5", "v1.0")
    with pytest.raises(BackboneError, match="2 layers"):
        load_backbone(TrainConfig.combined({"backbone": {"name": str(path), "layers": 3}}), [])
    cut = load_backbone(TrainConfig.combined({"backbone": {"name": str(path), "layers": 1}}), []).model
    cut.save_pretrained(tmp_path / "cut")
    again = load_language_model(tmp_path / "cut")
    ids, written = torch.tensor([[5, 77, 123]]), torch.tensor([[0, 9]])
    assert torch.allclose(
        again(input_ids=ids, decoder_input_ids=written).logits,
        cut(input_ids=ids, decoder_input_ids=written).logits,
    )
