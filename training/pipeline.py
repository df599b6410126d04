"""`gems train`: data set → item vectors → identifiers → backbone → training → bundle.

The run folder records everything:

    config.yaml, environment.json       the settings, and what they ran on
    prepared/                           item vectors, identifiers and the extended backbone
    metrics.jsonl, checkpoints/, best/  the training
    bundle/                             what `gems serve` serves
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from index.bundle import BundleInfo, publish
from index.catalogue import Catalogue
from index.embeddings import TextEncoder
from index.identifiers import Identifiers
from index.identifiers.atomic import atomic_identifiers
from index.identifiers.semantic import semantic_identifiers
from index.sequence import SequenceEncoder
from index.trie import Trie
from index.vocabulary import IdentifierVocabulary
from training import assets
from training.backbones import load_backbone
from training.batches import BatchSource
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.errors import UserError
from training.extension import extend_backbone
from training.methods import make_method
from training.trainer import Trainer, seed_everything
from training.validation import Validator


class RunError(UserError):
    """The run folder does not allow what was asked for."""


@dataclass(frozen=True)
class Prepared:
    """All that training starts from, as recorded in the run folder."""

    identifiers: Identifiers
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    vocabulary: IdentifierVocabulary


def train(data: Path, out: Path, config: TrainConfig, *, resume: bool = False, console: Console) -> Path:
    """Train and publish; returns the bundle's folder. Raises `UserError` with what to mend."""
    _open_run(out, config, data, resume)
    bundle = out / "bundle"
    if bundle.exists():
        console.print(f"{bundle} is published already; nothing left to do")
        return bundle
    seed_everything(config.seed, config.threads)
    dataset = DataSet.load(data)
    prepared = _prepare(out / "prepared", dataset.catalogue, config, console)
    trie = Trie.build(prepared.identifiers.codes)
    encoder = SequenceEncoder(
        prepared.tokenizer,
        prepared.vocabulary,
        prepared.identifiers.codes,
        max_tokens=config.max_tokens,
        max_events=config.max_events,
        max_query_tokens=config.max_query_tokens,
    )
    split = leave_one_out(dataset)
    if not split.validation:
        raise RunError(
            "no user has three interactions, so there is nothing to validate on; more data is needed"
        )
    batches = BatchSource(
        encoder,
        split.train,
        [item.title for item in dataset.catalogue],
        batch_size=config.batch_size,
        part_tokens=config.part_tokens,
        title_queries=config.title_queries,
        query_dropout=config.query_dropout,
        seed=config.seed,
    )
    trainer = Trainer(
        out,
        config,
        prepared.model,
        prepared.vocabulary,
        make_method(prepared.model, config),
        batches,
        Validator(prepared.model, encoder, trie, split.validation, config),
    )
    torch.manual_seed(config.seed)  # the same dropout whether `prepared` was just made or read back
    if resume and trainer.resume():
        console.print(f"resumed at step {trainer.progress.step} of {trainer.total_steps}")
    weights = sum(p.numel() for p in prepared.model.parameters())
    console.print(
        f"{len(split.train)} histories, {len(dataset.catalogue)} items, identifiers of "
        f"{prepared.vocabulary.levels} codes {prepared.vocabulary.codebook_sizes}; "
        f"{weights / 1e6:.1f} M weights"
    )
    validation = trainer.train()
    record = {
        "method": config.method,
        "backbone": config.backbone,
        "steps": trainer.progress.step,
        "best_step": trainer.progress.best_step,
        "seconds": round(trainer.progress.seconds, 1),
        "validation": validation,
    }
    info = _bundle_info(config, prepared, dataset, record)
    publish(
        bundle,
        model=prepared.model,
        tokenizer=prepared.tokenizer,
        catalogue=dataset.catalogue,
        identifiers=prepared.identifiers,
        info=info,
    )
    return bundle


def _open_run(out: Path, config: TrainConfig, data: Path, resume: bool) -> None:
    """Make the run folder, or check that the one to be resumed has the same settings."""
    recorded = out / "config.yaml"
    if out.exists() and any(out.iterdir()):
        if not recorded.exists():
            raise RunError(f"{out} is not empty and no run of ours; choose another --out")
        if not resume:
            raise RunError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
        before = yaml.safe_load(recorded.read_text("utf-8"))
        now = config.model_dump(mode="json")
        changed = [k for k in now if before.get(k) != now[k]]
        if changed:
            raise RunError(
                f"{out} was started with other settings ({', '.join(changed)}); a resumed run keeps them"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        "data": str(data),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gems": version("gems-sr"),
        "machine": platform.machine(),
    }
    (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", "utf-8")
    config.save(recorded)


def _prepare(folder: Path, catalogue: Catalogue, config: TrainConfig, console: Console) -> Prepared:
    """Item vectors, identifiers and the extended backbone; read back if an earlier start has made them."""
    if not (folder / "codes.npz").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        vectors = embed_items(catalogue, console)
        np.save(folder / "item_vectors.npy", vectors)
        with console.status("identifiers and backbone"):
            if config.scheme == "atomic":
                identifiers = atomic_identifiers(len(catalogue))
            else:
                identifiers = semantic_identifiers(vectors, config.codebooks, config.seed)
            backbone = load_backbone(config, catalogue.texts())
            titles = [item.title for item in catalogue]
            vocabulary = extend_backbone(backbone, identifiers, titles, vectors)
            backbone.model.save_pretrained(folder / "backbone")
            backbone.tokenizer.save_pretrained(folder / "backbone")
        np.savez(
            folder / "codes.npz",  # written last: its presence says that the folder is whole
            codes=identifiers.codes,
            codebook_sizes=np.array(identifiers.codebook_sizes),
            first_added=np.array(vocabulary.first_added),
        )
    stored = np.load(folder / "codes.npz", allow_pickle=False)
    sizes = tuple(int(size) for size in stored["codebook_sizes"])
    if len(stored["codes"]) != len(catalogue):
        raise RunError(
            f"{folder} was prepared for a catalogue of {len(stored['codes'])} items, not {len(catalogue)}"
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "backbone", dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone", local_files_only=True)
    vocabulary = IdentifierVocabulary(int(stored["first_added"]), sizes)
    return Prepared(Identifiers(config.scheme, stored["codes"], sizes), model, tokenizer, vocabulary)


def embed_items(catalogue: Catalogue, console: Console) -> np.ndarray[Any, np.dtype[np.float32]]:
    """MiniLM vectors of the items' texts, float32 [N, 384], with a progress bar."""
    encoder = TextEncoder(assets.fetch("minilm"))
    texts = catalogue.texts()
    order = np.argsort([len(text) for text in texts], kind="stable")
    chunks = np.array_split(order, max(1, len(texts) // 256))
    vectors = np.empty((len(texts), encoder.dimensions), np.float32)
    for chunk in track(chunks, "item embeddings", console=console):
        vectors[chunk] = encoder.encode([texts[row] for row in chunk])
    return vectors


def _bundle_info(
    config: TrainConfig, prepared: Prepared, dataset: DataSet, record: dict[str, Any]
) -> BundleInfo:
    created = datetime.now(UTC)
    return BundleInfo(
        bundle_id=f"{dataset.info.name}-{config.method}-{created:%Y%m%dT%H%M%SZ}",
        scheme=config.scheme,
        codebook_sizes=prepared.vocabulary.codebook_sizes,
        first_added_token=prepared.vocabulary.first_added,
        normalisation=config.normalisation,
        max_tokens=config.max_tokens,
        max_events=config.max_events,
        max_query_tokens=config.max_query_tokens,
        created=created.isoformat(timespec="seconds"),
        code_version=version("gems-sr"),
        data=asdict(dataset.info),
        training=record,
    )
