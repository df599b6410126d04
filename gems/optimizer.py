"""GEMS, the optimizer: gradient multi-subspace tuning (arXiv 2601.09496, as corrected in docs/gems.md).

    W ← W − η s (D_shared + Σ_t α_t D_t)        D_f = N_f V_fᵀ,  N_f = Adam on R_f = g_f V_f

Here g_shared = Σ_t g_t, V_f is the orthonormal basis of family f, inside the null space of the knowledge basis, and
α are the gate's weights. Hooks project each gradient during the backward pass: the full gradient of the model never
exists.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gems.gate import Gate
from gems.gradients.held import HeldGradients, StepFigures
from gems.gradients.passes import JOINT, Passes
from gems.gradients.schedule import RefreshSchedule
from gems.model.errors import GemsError, check_numbers
from gems.model.knowledge import KnowledgeBasis
from gems.model.layers import find_experts, find_linears, matrices_of
from gems.model.precision import full_precision
from gems.state import bytes_of, pack, state_bytes, unpack
from gems.weights.part import Rates
from gems.weights.plain import PlainParameters
from gems.weights.projected import make_weights
from gems.weights.ranks import SHARED, Ranks
from gems.weights.rules import Rules
from gems.weights.shards import common_group, local, prepare_sharded


class GEMS(torch.optim.Optimizer):
    """Optimizer for a model on several tasks: linear layers in subspaces, other trainable parameters by AdamW.

    model: any module; frozen parameters (`requires_grad=False`) stay as they are.
    tasks: names of the tasks; none for subspace tuning (GaLore) of a single loss.
    lr: learning rate η, also of the plain parameters.
    rank: size of the shared basis as a count of directions.
    rank_share: the same as a share of each weight's smaller dimension, in (0, 1]. Give exactly one of the two.
    task_rank, task_rank_share: size of each task's basis in the same way; half of the shared basis if not given.
    scale: factor s on the subspace updates.
    betas, eps: Adam's, for subspaces and plain parameters.
    weight_decay: decoupled weight decay of the projected weights.
    linears: name → layer to be projected; all trainable linear layers except the output head if not given.
    experts: name → parameter [experts, ·, ·] to be projected; those of `find_experts` if not given.
    tables: name → parameter [rows, columns] to be projected on its columns, such as a token table. It takes part in no
        null space, because it has no inputs: what its rows mean to general text changes with them.
    sites: groups of weight names whose layers read the same input, such as q, k and v; each group has one basis, which
        takes less state and computes x V once. See `find_sites`. Not next to output_bases.
    plain: parameters to be trained by AdamW; all other trainable parameters of the model if not given.
    refresh_every, stagger: steps between refreshes, and groups that take turns; see `RefreshSchedule`.
    knowledge: basis of directions that must not change.
    energy: share of the inputs' energy that the protected directions hold.
    cap: largest number of protected directions, as a share of a layer's inputs.
    softness: μ of the soft null space as a multiple of the mean eigenvalue of K, see `gems.weights.shrinkage`. It then
        takes the place of the protected directions, and `energy` and `cap` have no effect.
    output_bases: whether weights with more outputs than inputs have bases of output directions, which take less state.
        Not next to knowledge, whose directions are inputs.
    gate: `hypergradient`, `prior` or `uniform`.
    temperature: τ of the gate's softmax.
    deflate: whether task bases complement the shared one.
    transport: whether moments move to new bases.
    joint: one backward pass of the summed loss between refreshes instead of one for each task. The task
        families then see the joint gradient through their own bases. Turn it off where tasks are very unequal.
    rank_scaling, growth_limit: see `ProjectedWeight.update`.
    relative: whether the steps of every weight are multiplied by its magnitude.
    clip: largest norm of each family's projected gradient. The plain parameters count with the shared family.
    process_group: processes over which gradients are summed. Each process passes its contribution to the
        global loss.
    seed: seed of range finding and the gate.

    Call `backward(losses)` once or more, or `loss.backward()` inside `with optimizer.task(name):`, then `step()`.
    With at most one task, `loss.backward()` alone is enough.
    Warns if wanted ranks do not fit a weight and are cut down; `ranks` has those that hold.
    Raises `GemsError` for settings that do not fit the model or each other.
    """

    # `torch.amp.GradScaler` then hands its scale to `step`, which refuses it by name
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str] = (),
        *,
        lr: float,
        rank: int | None = None,
        rank_share: float | None = None,
        task_rank: int | None = None,
        task_rank_share: float | None = None,
        scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        linears: Mapping[str, nn.Module] | None = None,
        experts: Mapping[str, nn.Parameter] | None = None,
        tables: Mapping[str, nn.Parameter] | None = None,
        sites: Iterable[Sequence[str]] | None = None,
        plain: Iterable[nn.Parameter] | None = None,
        refresh_every: int = 200,
        stagger: int = 10,
        knowledge: KnowledgeBasis | None = None,
        energy: float = 0.9,
        cap: float = 0.5,
        softness: float | None = None,
        output_bases: bool = False,
        gate: str = "uniform",
        temperature: float = 1.5,
        deflate: bool = True,
        transport: bool = True,
        joint: bool = True,
        rank_scaling: bool = False,
        growth_limit: float | None = None,
        relative: bool = False,
        clip: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        if SHARED in tasks or JOINT in tasks or len(set(tasks)) != len(tasks):
            raise GemsError(
                f"task names {list(tasks)} must differ from each other and from {SHARED!r} and {JOINT!r}"
            )
        check_numbers(lr=lr, scale=scale, weight_decay=weight_decay)
        check_numbers(above=True, eps=eps, clip=clip, growth_limit=growth_limit, softness=softness)
        check_numbers(below=1.0, beta1=betas[0], beta2=betas[1], cap=cap)
        if not 0 <= energy <= 1:
            raise GemsError(f"energy {energy} must be a share in [0, 1]")
        prepare_sharded(model)
        linears = dict(linears if linears is not None else find_linears(model))
        experts = dict(experts if experts is not None else find_experts(model))
        matrices = matrices_of(linears, experts, tables or {})
        if sites is not None and output_bases:
            raise GemsError(
                "layers that read the same input have bases of inputs in common; drop output_bases"
            )
        if not matrices:
            raise GemsError("the model has no trainable linear layer to tune")
        if knowledge is not None:
            if output_bases:
                raise GemsError(
                    "bases of output directions cannot leave input directions alone; drop output_bases"
                )
            if experts:
                raise GemsError(
                    f"nothing is known of the inputs of {min(experts)}; give experts={{}} and freeze such weights, "
                    "or leave the knowledge out"
                )
            knowledge.check(linears)
        self.tasks = tuple(tasks)
        self.gate = Gate(self.tasks, gate, temperature=temperature, seed=seed)
        self.sensitivity: dict[str, float] = {}
        self._joint = joint and len(tasks) > 1
        self._clip = clip
        self._refresh_every = refresh_every
        self._figures: dict[str, float] = {}
        self._refreshed: dict[str, dict[str, float]] = {}
        rules = Rules(
            self.tasks,
            deflate,
            transport,
            rank_scaling,
            growth_limit,
            relative,
            knowledge,
            energy,
            cap,
            softness,
            output_bases,
            seed,
        )
        sizes = Ranks(rank, rank_share, task_rank, task_rank_share)
        self.weights = make_weights(matrices, [] if sites is None else sites, sizes, rules)
        parameters = list({id(m.parameter): m.parameter for m in matrices}.values())
        projected = {id(parameter) for parameter in parameters}
        others = model.parameters() if plain is None else plain
        plain = [p for p in others if p.requires_grad and id(p) not in projected]
        groups: list[dict[str, Any]] = [{"params": parameters, "scale": scale}]
        if plain:
            groups.append({"params": plain, "scale": 1.0, "weight_decay": 0.0})
        self._complete = False
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._complete = True
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        self._plain = PlainParameters(plain, settings, relative=relative)
        learning = self.tasks if gate == "hypergradient" and len(tasks) > 1 else ()
        shards = [part.shard for weight in self.weights for part in weight.parts] + self._plain.shards
        group = common_group(shards, process_group)
        if not transport and any(shard.sharded for shard in shards):
            raise GemsError(
                "moments that stay behind depend on the signs of directions, which processes with a part of the rows "
                "choose otherwise: leave transport on where the model is sharded"
            )
        self._held = HeldGradients(self.weights, plain, learning, self.tasks, group)
        schedule = RefreshSchedule(len(self.weights), refresh_every, stagger)
        self._passes = Passes(self.weights, self._held, self.tasks, schedule, joint=self._joint)
        self._devices = sorted({p.device.type for p in parameters} - {"meta"})

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._passes.steps

    @property
    def ranks(self) -> dict[str, dict[str, int]]:
        """Rank of each family, by weight."""
        return {
            part.name: {f: c.stop - c.start for f, c in weight.subspaces.columns.items()}
            for weight in self.weights
            for part in weight.parts
        }

    # ---- gradients

    def backward(
        self,
        losses: Mapping[str, Tensor] | Tensor,
        *,
        values: Mapping[str, float | Tensor] | None = None,
        samples: Mapping[str, float] | None = None,
    ) -> None:
        """Accumulate the gradients of Σ_t losses[t], with one backward pass for each task over one graph.

        Several calls before a `step` add up. A task that is missing in a step keeps its moments and step count.
        losses: scalars by task, with the weights of the objective; one tensor if the optimizer has no tasks.
        values: unweighted losses by task, for the gate; needed if `losses` are weighted.
        samples: number of samples by task, for the gate.
        Raises `GemsError` for an unknown task, or one tensor where the optimizer has tasks.
        """
        if isinstance(losses, Tensor):
            if self.tasks:
                raise GemsError(f"give the losses by task: {{{', '.join(map(repr, self.tasks))}: …}}")
            losses = {SHARED: losses}
        else:
            self._check_tasks(losses)
        if not losses:
            return
        for task, loss in losses.items():
            self._held.note(task, loss if values is None else values[task], (samples or {}).get(task, 0.0))
            self._held.objective += loss.detach().to(self._held.objective)
        if self._joint and not self._passes.refreshing():
            with self._passes.running(JOINT):
                torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            return
        for k, (task, loss) in enumerate(losses.items()):
            with self._passes.running(task):
                loss.backward(retain_graph=k + 1 < len(losses))  # type: ignore[no-untyped-call]

    @contextmanager
    def task(self, name: str, *, value: float | Tensor | None = None, samples: float = 0.0) -> Iterator[None]:
        """Count every `loss.backward()` inside the block as one of a task.

        value: unweighted loss, for the gate. If no task has one, the gate looks at the other features only.
        samples: number of samples, for the gate.
        Raises `GemsError` for an unknown task.
        """
        self._check_tasks([name])
        self._held.note(name, value, samples)
        with self._passes.running(name):
            yield

    def _check_tasks(self, names: Iterable[str]) -> None:
        unknown = set(names) - set(self.tasks)
        if unknown:
            raise GemsError(f"unknown task {min(unknown)!r}; the tasks are {', '.join(self.tasks) or 'none'}")

    def close(self) -> None:
        """Detach from the model: its layers are plain ones again and compute their own gradients."""
        self._passes.close()

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Refresh the bases that are due, train the gate, clip, update the weights, and drop the gradients.

        closure: computes the loss and its gradients; its value is returned.
        Without a backward pass since the last step, nothing happens. A weight that no gradient has reached stays.
        Raises `ArithmeticError` if a loss, a gradient or a gate's weight is not finite. Then no weight and no moment is
        changed, and the gradients are dropped.
        """
        if hasattr(self, "grad_scale"):
            for name in ("grad_scale", "found_inf"):  # it takes them away after a step that succeeds
                delattr(self, name)
            self.zero_grad()
            raise GemsError(
                "GEMS does not work with torch.amp.GradScaler: projected gradients are not in `.grad`. "
                "Use bf16 autocast, which needs no scaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with full_precision(self._devices):
            self._step()
        return loss

    def _step(self) -> None:
        held, passes = self._held, self._passes
        if passes.changed_elsewhere():
            warnings.warn(
                "gradients were changed in place after the backward pass (clip_grad_norm_?). Only plain parameters "
                "have theirs in `.grad`: use GEMS(clip=…) instead, with max_grad_norm=0 in a Trainer",
                stacklevel=5,
            )
        due = [weight for k, weight in enumerate(self.weights) if passes.is_due(k)]
        held.reduce(due)
        if not held.seen:
            return
        present = [task for task in self.tasks if task in held.seen]
        families = [SHARED, *present]
        group = self.param_groups[0]
        betas = (group["betas"][0], group["betas"][1])
        self._refreshed = {}
        if any(weight.full for weight in due):
            if not held.finite():
                self._refuse("a loss or a gradient is not finite")
            for weight in due:
                if weight.full:
                    by_task = {task: passes.families(task) for task in weight.full}
                    self._refreshed[weight.name] = weight.refresh(passes.steps, by_task, betas)
        figures = held.measure(families)
        if not figures.finite():
            self._refuse("a loss or a gradient is not finite")
        self._drive_gate(figures)
        coefficients = {SHARED: 1.0} | dict(zip(self.tasks, self.gate.weights().tolist(), strict=True))
        if not all(map(math.isfinite, coefficients.values())):
            self._refuse("a weight of the gate is not finite")
        if self._clip is not None:
            held.clip(figures, self._clip)
        rates = Rates(group["lr"] * group["scale"], group["lr"] * group["weight_decay"], betas, group["eps"])
        applied = {family: coefficients[family] for family in families}
        for weight in self.weights:
            weight.update(rates, applied)
        self._held.count_moved()
        self._plain.step(self.param_groups[-1])
        self._figures = {"gradient_norm": figures.norm(SHARED)} | {
            f"gate.{task}": coefficients[task] for task in self.tasks
        }
        passes.advance()
        self._name_unreached()
        self.zero_grad()

    def _refuse(self, reason: str) -> None:
        self.zero_grad()
        raise ArithmeticError(reason)

    def _name_unreached(self) -> None:
        """Warn once if a weight has had no gradient when all should have had their first refresh."""
        if self.steps == self._refresh_every:
            names = [part.name for weight in self.weights for part in weight.parts if not part.used]
            if names:
                warnings.warn(
                    f"no gradient has reached {names[0]} in {self.steps} steps ({len(names)} weights in all); "
                    "freeze what is not used (requires_grad_(False)) or leave it out of `linears`",
                    stacklevel=6,
                )

    def _drive_gate(self, figures: StepFigures) -> None:
        """Train the gate on the effect of the last update on this batch, then add this batch's figures to it."""
        if not self.tasks:
            return
        self.sensitivity = {}
        length = figures.norms[SHARED] * math.sqrt(sum(figures.moved.values()))
        if figures.alignment and all(figures.moved.values()) and length > 0:
            # one divisor for all tasks keeps the order of the true derivatives
            self.sensitivity = {task: -dot / length for task, dot in figures.alignment.items()}
            self.gate.learn(torch.tensor(list(self.sensitivity.values())))
        losses, norms, samples = (
            torch.tensor([source.get(task, 0.0) for task in self.tasks])
            for source in (figures.losses, figures.norms, self._held.samples)
        )
        self.gate.observe(
            losses, norms, samples, torch.tensor([task in self._held.seen for task in self.tasks])
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that backward passes have accumulated."""
        self._held.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: bases belong to the weights that the optimizer was made with. Raises `GemsError`."""
        if getattr(self, "_complete", False):
            raise GemsError(
                "GEMS takes its parameters when it is made: unfreeze them before, or give them as `linears` or `plain`"
            )
        super().add_param_group(param_group)

    # ---- figures and state

    def figures(self) -> dict[str, float]:
        """Return figures of the last step: `gradient_norm` (projected, joint) and `gate.<task>`."""
        return dict(self._figures)

    def refreshed(self) -> dict[str, dict[str, float]]:
        """Return figures of each weight that the last step refreshed; see `ProjectedWeight.refresh`."""
        return self._refreshed

    def exact_weights(self) -> dict[str, Tensor]:
        """Return the projected weights in full precision, by name: float32 for those in bf16.

        Their shape is [outputs, inputs], for an expert that of its part of the parameter.
        """
        return {part.name: part.exact() for weight in self.weights for part in weight.parts}

    def narrow(self) -> None:
        """Hold the projected weights of layers as bf16 from now on; `exact_weights` stay the same float32 numbers.

        So the knowledge of float32 weights holds, and a state goes on only in an optimizer that was narrowed, too.
        Tables and fused experts stay as they are. Raises `GemsError` for weights that are sharded, or not float32.
        """
        parts = [part for weight in self.weights for part in weight.parts if part.matrix.layer is not None]
        for part in parts:
            if part.shard.sharded or part.parameter.dtype != torch.float32:
                raise GemsError(f"{part.name} cannot be narrowed: it is sharded, or not float32")
        for part in parts:
            part.narrow()

    def widen(self) -> None:
        """Hold all projected weights that are bf16 as float32 again, with their exact values. Undoes `narrow`."""
        for weight in self.weights:
            for part in weight.parts:
                part.widen()

    @property
    def adamw(self) -> torch.optim.AdamW | None:
        """The optimizer of the parameters that are not projected, whose moments are made in its first step."""
        return self._plain.adamw

    def costs(self) -> dict[str, int]:
        """Return the bytes of state (bases, moments, remainders of bf16 weights) and of the gradients held for a step.

        Not counted: full gradients of the group that refreshes, and the knowledge basis, which is read at refreshes.
        """
        spaces = [weight.subspaces for weight in self.weights]
        gradients = [s.projected for s in spaces] + [local(p) for p in self._held.plain]
        if self._held.alignment:  # the gate compares the last updates with the gradients
            gradients += [s.first[:, s.columns[task]] for s in spaces for task in self.tasks]
        return {
            "state_bytes": state_bytes(self.weights, self._plain),
            "gradient_bytes": bytes_of(gradients),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that an exact resume needs in addition to the weights: `state` and `param_groups`.

        Both are those of `gems.state`; a third part, `gems`, has what belongs to no parameter: steps, tasks, the gate.
        """
        own = {"steps": self.steps, "tasks": list(self.tasks), "gate": self.gate.state_dict()}
        return {**pack(self.weights, self._plain, self.param_groups), "gems": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises `GemsError` if it is from another configuration."""
        if not {"state", "param_groups", "gems"} <= set(state):
            raise GemsError("this is no state of a GEMS optimizer, or one of an older version")
        own = state["gems"]
        if tuple(own["tasks"]) != self.tasks:
            raise GemsError(f"the state is of an optimizer with other tasks: {own['tasks']}")
        steps, gate = own["steps"], own["gate"]
        unpack(state, self.weights, self._plain, self.param_groups)
        self._passes.steps = steps
        self.gate.load_state_dict(gate)
        self.zero_grad()
