"""GEMS, the optimizer: gradient multi-subspace tuning (arXiv 2601.09496, as corrected in docs/gems.md).

    W ← W − η s (D_shared + Σ_t α_t D_t)        D_f = N_f V_fᵀ,  N_f = Adam on R_f = g_f V_f

Here g_shared = Σ_t g_t, V_f is the orthonormal basis of family f, inside the null space of the knowledge basis, and
α are the gate's weights. Hooks project each gradient during the backward pass: the full gradient of the model never
exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gems.errors import GemsError
from gems.gate import Gate
from gems.gradients import HeldGradients
from gems.knowledge import KnowledgeBasis
from gems.layers import SHARED, Ranks, find_linears, ranks_of
from gems.linear import Route, RoutedLinear
from gems.numerics import magnitude
from gems.schedule import RefreshSchedule
from gems.weight import ProjectedWeight, Rules


class GEMS(torch.optim.Optimizer):
    """Optimizer for a model on several tasks: linear layers in subspaces, other trainable parameters by AdamW.

    model: any module; frozen parameters (`requires_grad=False`) stay as they are.
    tasks: names of the tasks; none for subspace tuning (GaLore) of a single loss.
    lr: learning rate η, also of the plain parameters.
    rank: size of the shared basis as a count of directions.
    rank_share: the same as a share of each layer's inputs, in (0, 1]. Give exactly one of the two.
    task_rank, task_rank_share: size of each task's basis in the same way; half of the shared basis if not given.
    scale: factor s on the subspace updates.
    betas, eps: Adam's, for subspaces and plain parameters.
    weight_decay: decoupled weight decay of the projected weights.
    linears: name → layer to be projected; all trainable `nn.Linear` except the output head if not given.
    plain: parameters to be trained by AdamW; all other trainable parameters of the model if not given.
    refresh_every, stagger: steps between refreshes, and groups that take turns; see `RefreshSchedule`.
    knowledge: basis of directions that must not change.
    energy: share of the inputs' energy that the protected directions hold.
    cap: largest number of protected directions, as a share of a layer's inputs.
    gate: `hypergradient`, `prior` or `uniform`.
    temperature: τ of the gate's softmax.
    deflate: whether task bases complement the shared one.
    transport: whether moments move to new bases.
    joint: one backward pass of the summed loss between refreshes instead of one for each task. The task
        families then see the joint gradient through their own bases.
    rank_scaling, growth_limit: see `ProjectedWeight.update`.
    relative: whether the steps of every weight are multiplied by its magnitude.
    clip: largest norm of each family's projected gradient. The plain parameters count with the shared family.
    process_group: processes over which gradients are summed. Each process passes its contribution to the
        global loss.
    seed: seed of range finding, rounding and the gate.

    Call `backward(losses)` once or more, then `step()`.
    Raises `GemsError` for settings that do not fit the model or each other.
    """

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
        linears: Mapping[str, nn.Linear] | None = None,
        plain: Iterable[nn.Parameter] | None = None,
        refresh_every: int = 200,
        stagger: int = 10,
        knowledge: KnowledgeBasis | None = None,
        energy: float = 0.9,
        cap: float = 0.5,
        gate: str = "hypergradient",
        temperature: float = 1.5,
        deflate: bool = True,
        transport: bool = True,
        joint: bool = False,
        rank_scaling: bool = False,
        growth_limit: float | None = None,
        relative: bool = False,
        clip: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        if SHARED in tasks or len(set(tasks)) != len(tasks):
            raise GemsError(f"task names {list(tasks)} must differ from each other and from {SHARED!r}")
        linears = dict(linears if linears is not None else find_linears(model))
        if not linears:
            raise GemsError("the model has no trainable linear layer to tune")
        if knowledge is not None:
            knowledge.check(linears)
        self.tasks = tuple(tasks)
        self.steps = 0
        self._schedule = RefreshSchedule(len(linears), refresh_every, stagger)
        self._joint = joint and len(tasks) > 1
        self._clip = clip
        self._seed = seed
        self.gate = Gate(self.tasks, gate, temperature=temperature, seed=seed)
        rules = Rules(
            self.tasks,
            betas,
            eps,
            deflate,
            transport,
            rank_scaling,
            growth_limit,
            relative,
            knowledge,
            energy,
            seed,
        )
        sizes = Ranks(rank, rank_share, task_rank, task_rank_share)
        self.weights: list[ProjectedWeight] = []
        for index, (name, linear) in enumerate(linears.items()):
            ranks, limit = ranks_of(name, linear, self.tasks, sizes, cap, knowledge, energy)
            parameter = cast(nn.Parameter, linear.weight)
            self.weights.append(ProjectedWeight(name, index, parameter, ranks, limit, rules))
        projected = {id(weight.parameter) for weight in self.weights}
        others = model.parameters() if plain is None else plain
        plain = [p for p in others if p.requires_grad and id(p) not in projected]
        groups = [{"params": [w.parameter for w in self.weights], "scale": scale}]
        if plain:
            groups.append({"params": plain, "scale": 1.0})
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._relative = relative
        alone = [{"params": [p]} for p in plain] if relative else plain  # each with a rate of its own
        self._plain = (
            torch.optim.AdamW(alone, lr=lr, betas=betas, eps=eps, weight_decay=0.0) if plain else None
        )
        self._hooks: list[RemovableHandle] = []
        self._routed: list[nn.Linear] = []
        for k, linear in enumerate(linears.values()):
            self._connect(k, linear)
        self._current: str | None = None
        self._figures: dict[str, float] = {}
        self.sensitivity: dict[str, float] = {}
        self._refreshed: dict[str, dict[str, float]] = {}
        learning = gate == "hypergradient" and len(tasks) > 1
        self._gradients = HeldGradients(
            self.weights, plain, self.tasks if learning else (), len(tasks), process_group
        )

    # ---- gradients

    def backward(
        self,
        losses: Mapping[str, Tensor] | Tensor,
        *,
        values: Mapping[str, float] | None = None,
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
            unknown = set(losses) - set(self.tasks)
            if unknown:
                raise GemsError(f"unknown task {min(unknown)!r}; the tasks are {', '.join(self.tasks)}")
        if not losses:
            return
        for k, task in enumerate(self.tasks):
            if task in losses:
                value = float(losses[task].detach()) if values is None else values[task]
                self._gradients.stats[:, k] += torch.tensor([value, (samples or {}).get(task, 0.0), 1.0])
        if self._joint and not self._refreshing():
            self._run(torch.stack(list(losses.values())).sum(), "joint", retain=False)
            return
        for k, (task, loss) in enumerate(losses.items()):
            self._run(loss, task, retain=k + 1 < len(losses))

    def _run(self, loss: Tensor, task: str, *, retain: bool) -> None:
        self._current = task
        try:
            loss.backward(retain_graph=retain)  # type: ignore[no-untyped-call]
        finally:
            self._current = None

    def _connect(self, k: int, linear: nn.Linear) -> None:
        """Connect a layer: its gradient arrives projected from `RoutedLinear`, or whole from a hook."""
        weight = self.weights[k]

        def basis() -> Tensor | None:
            ready = weight.subspaces.ready and not self._is_due(k)
            return weight.subspaces.basis if ready else None

        def receive(gradient: Tensor) -> None:
            weight.receive(gradient, self._families(self._task()), self._gradients.alignment)

        def take(parameter: nn.Parameter) -> None:
            if parameter.grad is None:  # it arrived projected
                return
            task = self._task()
            weight.take(task, self._families(task), keep=self._is_due(k), alignment=self._gradients.alignment)

        if type(linear) is nn.Linear and weight.subspaces.basis.shape[1] < linear.in_features:
            RoutedLinear.install(linear, Route(basis, receive))
            self._routed.append(linear)
        hook = weight.parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
        self._hooks.append(hook)

    def _task(self) -> str:
        if self._current is None:
            raise GemsError("call optimizer.backward(losses), not loss.backward(): tasks must be told apart")
        return self._current

    def close(self) -> None:
        """Detach from the model: its layers are plain ones again and compute their own gradients."""
        for hook in self._hooks:
            hook.remove()
        for linear in self._routed:
            RoutedLinear.remove(linear)
        self._hooks, self._routed = [], []

    def _families(self, task: str) -> list[str]:
        """Return the families whose bases a task's gradient is projected into."""
        if self._joint:
            return [SHARED, *self.tasks]
        return [SHARED] if task == SHARED else [SHARED, task]

    def _is_due(self, k: int) -> bool:
        """Whether the bases of weight k are refreshed in the next step."""
        return self._schedule.is_due(k, self.steps, self.weights[k].subspaces.ready)

    def _refreshing(self) -> bool:
        return any(self._is_due(k) for k in range(len(self.weights)))

    # ---- the step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Refresh the bases that are due, train the gate, clip, update the weights, and drop the gradients.

        Raises `ArithmeticError` if a gradient is not finite. Then no weight is changed, and the gradients are dropped.
        Raises `GemsError` if no gradient has reached a weight.
        """
        held = self._gradients
        held.reduce_stats()
        present = held.present(self.tasks)
        due = [weight for k, weight in enumerate(self.weights) if self._is_due(k)]
        held.reduce(due, present or [SHARED])
        families = [SHARED, *present]
        if not held.finite():
            self.zero_grad()
            raise ArithmeticError("the gradient is not finite")
        self._refreshed = {}
        for weight in due:
            if not weight.full and not weight.subspaces.ready:
                raise GemsError(
                    f"no gradient reached {weight.name}; freeze it (requires_grad_(False)) or leave it out of `linears`"
                )
            if weight.full:
                names = {task: self._families(task) for task in weight.full}
                self._refreshed[weight.name] = weight.refresh(self.steps, names)
        norms = {family: held.norm(family) for family in families}
        self._drive_gate(norms)
        coefficients = {SHARED: 1.0} | dict(zip(self.tasks, self.gate.weights().tolist(), strict=True))
        if self._clip is not None:
            held.clip(norms, self._clip)
        rates, plain_rates = self.param_groups[0], self.param_groups[-1]
        generators: dict[torch.device, torch.Generator] = {}
        for weight in self.weights:
            device = weight.parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(
                    hash((self._seed, self.steps)) & (2**63 - 1)
                )
            weight.update(
                rates["lr"] * rates["scale"],
                rates["lr"] * rates["weight_decay"],
                {family: coefficients[family] for family in families},
                generators[device],
            )
        if self._plain is not None:
            for group in self._plain.param_groups:
                length = magnitude(group["params"][0]) if self._relative else 1.0
                group["lr"] = plain_rates["lr"] * plain_rates["scale"] * length
            self._plain.step()
        self._figures = {"gradient_norm": norms[SHARED]} | {
            f"gate.{task}": coefficients[task] for task in self.tasks
        }
        self.steps += 1
        self.zero_grad()

    def _drive_gate(self, norms: Mapping[str, float]) -> None:
        """Train the gate on the effect of the last update on this batch, then add this batch's figures to it."""
        if not self.tasks:
            return
        self.sensitivity = {}
        alignment = self._gradients.alignment
        moved = [sum(weight.moved.get(task, 0.0) for weight in self.weights) for task in alignment]
        length = norms[SHARED] * math.sqrt(sum(moved))
        if alignment and all(moved) and length > 0:
            # one divisor for all tasks keeps the order of the true derivatives
            self.sensitivity = {task: -float(dot) / length for task, dot in alignment.items()}
            self.gate.learn(torch.tensor(list(self.sensitivity.values())))
        losses, samples, passes = self._gradients.stats
        self.gate.observe(
            losses, torch.tensor([norms.get(task, 0.0) for task in self.tasks]), samples, passes > 0
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that `backward` has accumulated."""
        self._gradients.drop()

    # ---- figures and state

    def figures(self) -> dict[str, float]:
        """Return figures of the last step: `gradient_norm` (projected, joint) and `gate.<task>`."""
        return dict(self._figures)

    def refreshed(self) -> dict[str, dict[str, float]]:
        """Return figures of each weight that the last step refreshed; see `ProjectedWeight.refresh`."""
        return self._refreshed

    def costs(self) -> dict[str, int]:
        """Return the bytes of state (bases, moments) and of gradients held between `backward` and `step`.

        Not counted: full gradients of the group that refreshes, and the knowledge basis, which is read at refreshes.
        """
        spaces = [weight.subspaces for weight in self.weights]
        state = [t for s in spaces for t in (s.basis, s.first, s.second)]
        plain = self._plain.state.values() if self._plain is not None else ()
        state += [t for entry in plain for t in entry.values() if isinstance(t, Tensor)]
        gradients = [s.projected for s in spaces] + self._gradients.plain
        if self._gradients.alignment:  # the gate compares the last updates with the gradients
            gradients += [s.first[:, s.columns[task]] for s in spaces for task in self.tasks]
        return {"state_bytes": _bytes(state), "gradient_bytes": _bytes(gradients)}

    def state_dict(self) -> dict[str, Any]:
        """Return all that an exact resume needs in addition to the weights: tensors and plain values."""
        return {
            "steps": self.steps,
            "tasks": list(self.tasks),
            "weights": {weight.name: weight.state_dict() for weight in self.weights},
            "gate": self.gate.state_dict(),
            "plain": self._plain.state_dict() if self._plain is not None else None,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises `GemsError` if it is from another configuration."""
        mine = [weight.name for weight in self.weights]
        if list(state["weights"]) != mine or tuple(state["tasks"]) != self.tasks:
            raise GemsError("the state is of an optimizer with other layers or tasks")
        for weight in self.weights:
            try:
                weight.load_state_dict(state["weights"][weight.name])
            except ValueError as error:
                raise GemsError(f"the state of {weight.name} is of another configuration: {error}") from error
        self.steps = state["steps"]
        self.gate.load_state_dict(state["gate"])
        if self._plain is not None:
            self._plain.load_state_dict(state["plain"])
        for group, stored in zip(self.param_groups, state["groups"], strict=True):
            group.update(stored)
        self.zero_grad()


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
