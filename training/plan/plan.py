"""Memory and work of a training, counted on tensors without numbers.

The model of the settings is built on the meta device with each method, and a part of a step goes forward and back
through the code that a training runs, as on a GPU unless `device` is the CPU. What is alive meanwhile is counted
(`meter`), and so are the floating-point operations.

Not counted: the context of the GPU and the workspaces of its libraries (1 to 2 GB), fragmentation, the engine that
ranks for validations, which runs between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from gems import find_linears
from gems.model.layers import outputs_and_inputs
from index.identifiers.schemes.auto import MOST_ATOMIC
from index.identifiers.schemes.gensar import shared_levels
from index.sequence.encoder import TASKS
from index.sequence.events import Task
from index.sequence.language_model import is_encoder_decoder
from index.sequence.vocabulary import MARKERS, IdentifierVocabulary
from training.config import ConfigError, TrainConfig
from training.loop.losses import item_losses
from training.loop.parts import Part
from training.methods.method import Method, NarrowMethod
from training.methods.registry import make_method
from training.methods.tuning.gems import GemsTuning
from training.model.forward import checkpoint_blocks
from training.model.precision import Precision, forward_under
from training.model.text_part import TextPart, divides_rows
from training.plan.backbones import backbone_shape
from training.plan.meter import Meter
from training.plan.pretend_autocast import PretendAutocast
from training.plan.pretend_shards import PretendShards
from training.prepare.knowledge_basis import uses_knowledge

EVENT = 12  # tokens of an event with its query, of which one item is predicted
VECTOR = 384  # width of an item's vector, that of MiniLM
LAST_LEVEL = 64  # codes of the level that separates items with the same codes
MOST_SEQUENCES = 8**4


@dataclass(frozen=True)
class Need:
    """Bytes and work of one process, with a method.

    weights: of the model and its adapters.
    state: of the optimizer.
    gradients: between passes and step.
    activations: kept by the forward pass of a part for its backward pass.
    peak: most that is alive at a time, with all of the above; under GEMS in a step that refreshes a group of layers.
    knowledge: of the knowledge basis, in the host's memory; 0 without one.
    flops: floating-point operations of a part, forward and back, in a step without refreshes.
    sent: bytes of a step that a process sends, if N processes share it: a ring sends 2 (N − 1) / N of each gradient.
    """

    weights: int
    state: int
    gradients: int
    activations: int
    peak: int
    knowledge: int
    flops: int
    sent: int


def need(config: TrainConfig, items: int, *, sequences: int | None = None, processes: int = 1) -> Need:
    """Count what a part of a step needs.

    config: settings of the training.
    items: size of the catalogue.
    sequences: of a part; None for as many as `optimiser.part_tokens` holds.
    processes: that share the training; each has the whole model, or with `backbone.shard` its rows. The need is then
        that of the main process, which keeps a whole model beside them.
    Raises `BackboneError` if the shape of the backbone is not at hand, and `UserError` for settings that do not fit it.
    """
    length = config.sequence.max_tokens
    sequences = sequences or max(1, config.optimiser.part_tokens // length)
    sizes = codebook_sizes(config, items)
    precision = planned_precision(config)
    meter = Meter(cpu=config.device == "cpu")
    with meter:
        model = backbone_shape(config, len(MARKERS) + sum(sizes))
        meter.peak = meter.now  # layers that are cut off never reach the device
        if config.backbone.activation_checkpointing:
            checkpoint_blocks(model, nullcontext if precision == "float32" else PretendAutocast)
        first_added = len(model.get_input_embeddings().weight) - len(MARKERS) - sum(sizes)
        vocabulary = IdentifierVocabulary(first_added, sizes)
        whole = _bytes_of_weights(model)
        text = text_part_of(model, vocabulary, config, items)
        method = make_method(model, config, first_added)
        if precision == "bfloat16":
            assert isinstance(method, NarrowMethod)
            method.narrow()
        weights = _bytes_of_weights(model)
        shards = None
        if config.backbone.shard and processes > 1:
            meter.peak = 2 * whole  # the main process keeps the model that it shards a copy of
            meter.now += whole
            shards = PretendShards(model, method, processes, meter, cpu=config.device == "cpu")
            weights = whole + shards.held(unique_parameters(model))
        part = part_of(model, vocabulary, sequences, length, config.sequence.trained_tasks)
        before = meter.now

        def pass_part() -> int:
            """Go forward and back. Return the bytes that the forward pass kept."""
            with (
                nullcontext() if text is None else text.added(),
                forward_under(model, precision, lambda _: PretendAutocast()),
            ):
                losses = item_losses(
                    model, vocabulary, part, config.identifiers.normalisation, method.rows, text
                )
            kept = meter.now - before
            method.backward(losses, dict.fromkeys(losses, 1 / len(losses)))
            return kept

        activations = pass_part()
        if isinstance(method, GemsTuning):
            # a group of layers had its first bases; now a step in which all have them
            for weight in method.optimizer.weights:
                weight.subspaces.ready = True
            method.optimizer.zero_grad()
            if shards is not None:
                shards.forget()
            meter.flops = 0
            pass_part()
    costs, later = method.costs(), _later_state(method, shards)
    sent = 2 * (processes - 1) * costs["gradient_bytes"] // processes
    if shards is not None:
        sent, costs = shards.sent(costs["gradient_bytes"]), shards.costs(costs, method)
    return Need(
        weights=weights,
        state=costs["state_bytes"] + later,
        gradients=costs["gradient_bytes"],
        activations=activations,
        peak=meter.peak + later,
        knowledge=_knowledge(config, model),
        flops=meter.flops,
        sent=sent,
    )


def largest_part(config: TrainConfig, items: int, memory: int, *, processes: int = 1) -> int:
    """Return about how many sequences of `sequence.max_tokens` fit into a part: at most `MOST_SEQUENCES`, 0 if none do.

    processes: see `need`.
    memory: bytes of a GPU. The peak is convex in the sequences: a straight line between two sizes lies above it, and
    so what is returned fits.
    """
    fits, over = 0, 1
    peaks = {over: need(config, items, sequences=over, processes=processes).peak}
    while peaks[over] <= memory and over < MOST_SEQUENCES:
        fits, over = over, 8 * over
        peaks[over] = need(config, items, sequences=over, processes=processes).peak
    if peaks[over] <= memory:
        return over
    if not fits:
        return 0
    for _ in range(2):
        share = (memory - peaks[fits]) / max(1, peaks[over] - peaks[fits])
        guess = fits + int(share * (over - fits))
        if guess in peaks:
            break
        peaks[guess] = need(config, items, sequences=guess, processes=processes).peak
        fits = guess
    return fits


def codebook_sizes(config: TrainConfig, items: int) -> tuple[int, ...]:
    """Return about the sizes of the codebooks of a catalogue; for text identifiers, one token of their own."""
    scheme = config.identifiers.scheme
    if scheme == "text":
        return (1,)
    if scheme == "atomic" or (scheme == "auto" and items <= MOST_ATOMIC):
        return (items,)
    sizes = config.identifiers.codebooks
    if scheme == "gensar":  # levels that are not shared have codes of both kinds
        shared = shared_levels(sizes)
        sizes = (*sizes[:shared], *(2 * size for size in sizes[shared:]))
    return (*sizes, LAST_LEVEL)


def planned_precision(config: TrainConfig) -> Precision:
    """Return the precision of a training: 'auto' is autocast, as on a GPU, unless the device is the CPU."""
    wanted = config.backbone.precision
    if wanted == "auto":
        return "float32" if config.device == "cpu" else "autocast"
    return wanted


def text_part_of(
    model: PreTrainedModel, vocabulary: IdentifierVocabulary, config: TrainConfig, items: int
) -> TextPart | None:
    """Return the part of a model's item rows that their texts decide, with maps of zeros; None where it has none."""
    if not divides_rows(model, config, levels=vocabulary.levels, spelled=config.identifiers.scheme == "text"):
        return None
    nothing = np.broadcast_to(np.float32(0), (items, VECTOR))
    return TextPart(model, int(vocabulary.first_code[0]), nothing)


def unique_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model, of those that share a storage the first."""
    return list({p.untyped_storage()._cdata: p for p in model.parameters()}.values())


def _bytes_of_weights(model: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in unique_parameters(model))


def _later_state(method: Method, shards: PretendShards | None) -> int:
    """Return the bytes of the moments that AdamW makes in its first step."""
    if method.adamw is None:
        return 0
    weights = [
        p for group in method.adamw.param_groups for p in group["params"] if not method.adamw.state.get(p)
    ]
    held = sum(p.nbytes for p in weights) if shards is None else shards.held(weights)
    return 2 * held + 4 * len(weights)


def _knowledge(config: TrainConfig, model: PreTrainedModel) -> int:
    """Return the bytes of the directions that are kept of the inputs of every layer."""
    if not uses_knowledge(config):
        return 0
    inputs = [outputs_and_inputs(linear)[1] for linear in find_linears(model).values()]
    return sum(4 * n * round(config.knowledge.cap * n) for n in inputs)


def part_of(
    model: PreTrainedModel,
    vocabulary: IdentifierVocabulary,
    sequences: int,
    length: int,
    tasks: Sequence[Task] = TASKS,
) -> Part:
    """Return a part whose targets are of the tasks in turn: whole sequences, or prompts of an encoder-decoder."""
    written = torch.from_numpy(vocabulary.first_code)
    levels = vocabulary.levels
    ids = torch.zeros(sequences, length, dtype=torch.long)
    level = torch.full(ids.shape, -1, dtype=torch.int8)
    starts: Sequence[int] = range(EVENT, length - levels + 1, EVENT) or [max(1, length - levels)]
    prompt = None
    if is_encoder_decoder(model):
        prompt = torch.zeros(sequences, length, dtype=torch.long)
        ids = torch.zeros(sequences, 1 + levels, dtype=torch.long)
        level = torch.full(ids.shape, -1, dtype=torch.int8)
        starts = [1]
    for start in starts:
        ids[:, start : start + levels] = written
        level[:, start : start + levels] = torch.arange(levels, dtype=torch.int8)
    numbers = torch.tensor([TASKS.index(each) for each in tasks], dtype=torch.int8)
    task = numbers[torch.arange(sequences) % len(tasks)].unsqueeze(1).expand(ids.shape).clone()
    if sequences == 1:  # all tasks in one sequence
        task[:, ids.shape[1] // 2 :] = numbers[-1]
    item = torch.where(level == 0, 0, -1)
    # prompts have padding; packed rows have positions, and a mask of their own samples
    attended = None if prompt is None else torch.arange(length).expand(prompt.shape) < length - 1
    position = None if prompt is not None else torch.arange(ids.shape[1]).expand(ids.shape).clone()
    return Part(ids, level, task, item, prompt, attended, position)


def plan(
    config: TrainConfig,
    methods: Sequence[str],
    items: int,
    memory: int,
    *,
    gpus: int = 1,
    speed: float | None = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Plan a training with several methods, each with blocks that keep their activations or compute them again.

    methods: names of tuning methods.
    memory: bytes of a GPU.
    gpus: that share the training; each has its share of the parts of a step, and see `need`.
    speed: floating-point operations a second that the GPU reaches; None leaves out the times.
    progress: called with the number of finished rows and of all rows.
    Raises what `need` raises. Returns a JSON-ready dictionary; all sizes are in bytes:

        backbone, items, tokens, sequences, memory, gpus    the question: tokens of a sequence, sequences of a part
        rows    for each method and choice the fields of `Need`, and
                method, activation_checkpointing
                fits: whether the part fits the memory
                largest: sequences of the largest part that does
                seconds: of a part, if a speed is given
        refused    method → why the settings do not suit it
    """
    length = config.sequence.max_tokens
    asked: list[TrainConfig] = []
    refused: dict[str, str] = {}
    for method in methods:
        try:
            for again in (False, True):
                changes = {"method": method, "backbone.activation_checkpointing": again}
                asked.append(TrainConfig.combined(config.model_dump(), changes))
        except ConfigError as error:  # settings of one method may not suit another
            refused[method] = str(error)
    if not asked:
        raise ConfigError("; ".join(refused.values()))
    rows: list[dict[str, Any]] = []
    for chosen in asked:
        needed = need(chosen, items, processes=gpus)
        again = chosen.backbone.activation_checkpointing
        row = {"method": chosen.method, "activation_checkpointing": again} | asdict(needed)
        row |= {"fits": needed.peak <= memory, "largest": largest_part(chosen, items, memory, processes=gpus)}
        rows.append(row | ({} if speed is None else {"seconds": needed.flops / speed}))
        progress(len(rows), len(asked))
    return {
        "backbone": config.backbone.name, "items": items, "tokens": length,
        "sequences": max(1, config.optimiser.part_tokens // length), "memory": memory, "gpus": gpus, "rows": rows,
        "refused": refused,
    }  # fmt: skip
