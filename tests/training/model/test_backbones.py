"""Real backbones: SmolLM2 from the asset, its first layers, and small ones from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from index.identifiers.identifiers import Identifiers
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Event, Task
from index.trie.trie import Trie
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.config import TrainConfig
from training.loop.losses import item_losses
from training.loop.parts import pad
from training.methods.registry import make_method
from training.model.backbones import BackboneError, load_backbone, train_tokenizer
from training.model.extension import extend_backbone

TITLES = [
    "Red wine glasses", "White wine glasses", "Champagne flutes", "Beer mugs",
    "Running shoes", "Trail running shoes", "Football boots", "Tennis shoes",
]  # fmt: skip
IDENTIFIERS = Identifiers("semantic", np.array([[k // 4, k % 4] for k in range(8)], np.int32), (2, 4))
VECTORS = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def whole() -> object:
    return load_backbone(TrainConfig(), [])


def test_smollm2_is_a_language_model(whole) -> None:  # type: ignore[no-untyped-def]
    ids = whole.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        word = whole.tokenizer.decode(whole.model(ids).logits[0, -1].argmax())
    assert word.strip() == "Paris"
    assert whole.pretrained


def test_the_first_layers_compute_what_they_did_in_the_whole(whole) -> None:  # type: ignore[no-untyped-def]
    cut = load_backbone(TrainConfig.combined({"backbone.layers": 2}), [])
    ids = torch.tensor([[5, 77, 1234]])
    with torch.inference_mode():
        states = whole.model(ids, output_hidden_states=True).hidden_states
        ours = cut.model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(states[1], ours[1], atol=1e-5)
    assert cut.model.config.num_hidden_layers == 2
    with pytest.raises(BackboneError, match="30 layers"):
        load_backbone(TrainConfig.combined({"backbone.layers": 31}), [])


def test_a_pretrained_backbone_starts_with_like_items_alike_and_old_words_untouched() -> None:
    backbone = load_backbone(TrainConfig.combined({"backbone.layers": 1}), [])
    before = backbone.model.get_input_embeddings().weight.detach().clone()
    vocabulary = extend_backbone(backbone, IDENTIFIERS, TITLES, VECTORS)
    after = backbone.model.get_input_embeddings().weight.detach()
    assert torch.equal(after[: len(before)], before)
    first = int(vocabulary.first_code[0])
    rows = torch.nn.functional.normalize(after[first : first + 2] - before.mean(0), dim=-1)
    words = backbone.tokenizer(" wine", add_special_tokens=False).input_ids
    wine = torch.nn.functional.normalize(before[words[0]] - before.mean(0), dim=-1)
    assert float(rows[0] @ wine) > float(rows[1] @ wine)  # code 0 is about glasses, code 1 about shoes
    assert backbone.tokenizer.convert_tokens_to_ids("<|search|>") == vocabulary.markers["search"]


def test_a_cut_smollm2_learns_and_is_served() -> None:
    backbone = load_backbone(TrainConfig.combined({"backbone.layers": 2}), [])
    vocabulary = extend_backbone(backbone, IDENTIFIERS, TITLES, VECTORS)
    encoder = SequenceEncoder(backbone.tokenizer, vocabulary, IDENTIFIERS.codes)
    part = pad([encoder.sample([Event(k, Task.SEARCH, TITLES[k]), Event(k)]) for k in range(8)])
    method = make_method(
        backbone.model, TrainConfig.combined({"optimiser.learning_rate": 3e-4, "method": "full"}), 0
    )
    losses = []
    for _ in range(25):
        sums = item_losses(backbone.model, vocabulary, part, "level")
        method.backward({task: total / 8 for task, total in sums.items()}, dict.fromkeys(Task, 0.5))
        method.step(3e-4)
        losses.append(sum(float(total.detach()) for total in sums.values()) / 16)
    assert losses[-1] < losses[0] / 4
    engine = TorchEngine(backbone.model, Trie.build(IDENTIFIERS.codes), vocabulary)
    requests = [RankRequest(encoder.prompt([], title).ids, 1, 8) for title in TITLES]
    assert [ranking.items[0] for ranking in engine.rank(requests)] == list(range(8))


def test_a_scratch_backbone_writes_any_text_and_starts_from_the_item_vectors() -> None:
    config = TrainConfig.combined(
        {"backbone": {"name": "scratch", "hidden": 32, "heads": 2, "text_vocabulary": 300}}
    )
    backbone = load_backbone(config, TITLES)
    text = "Ünïcode 星 & <|search|>"
    assert backbone.tokenizer.decode(backbone.tokenizer(text).input_ids).strip() == text.lower()
    atomic = Identifiers("atomic", np.arange(8, dtype=np.int32)[:, None], (8,))
    vocabulary = extend_backbone(backbone, atomic, TITLES, VECTORS)
    rows = backbone.model.get_input_embeddings().weight[int(vocabulary.first_code[0]) :].detach()
    centred = torch.from_numpy(VECTORS - VECTORS.mean(0))
    cosine = torch.corrcoef(torch.stack([(rows @ rows.T).flatten(), (centred @ centred.T).flatten()]))[0, 1]
    assert cosine > 0.99  # the same geometry
    again = load_backbone(config, TITLES)
    assert again.tokenizer.get_vocab() == train_tokenizer(TITLES, 300).get_vocab()
    with pytest.raises(BackboneError, match="multiple"):
        load_backbone(
            TrainConfig.combined({"backbone": {"name": "scratch", "hidden": 30, "heads": 4}}), TITLES
        )
