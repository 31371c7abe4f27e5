"""Solvers of one layer's depth step: a predictor makes z(0), a corrector iterates it and makes x_{t+1}.

Legend: B batch, T tokens, D model width, L layers, t the layer (1-based as in the paper), i the iteration,
r_t the iterations of layer t, H_k the state after layer k (H_0 the embeddings), x_t the input of layer t.
All states are (B, T, D).

A solver is given one function, step(rule, *states) = rule(block, *states) -> state, and calls it once for each
evaluation of the layer's block. The block is block(point, base=point) = base + f_t(point), f_t the increment of the
pre-norm block; the rule is the evaluation with the combination before it and the norm after it. A step owns a cache
slot and is the unit of recomputation, so its states are arguments of their own: torch's checkpoint looks for tensors
nowhere else. Where tokens stop by themselves, step(rule, *states, going=...) is for those that go on.

A module uses its parameters inside its own `forward` alone: offloading and adapters wrap that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ExplicitEuler",
    "MultistepCorrector",
    "PicardCorrector",
    "RungeKutta",
    "Step",
    "extrapolate",
    "relative_change",
    "solve",
    "weighted_sum",
]

Norm = Callable[[Tensor], Tensor]
Block = Callable[..., Tensor]
"""block(point) = F_t(point), block(point, base) = base + f_t(point)."""

Step = Callable[..., Tensor]
"""step(rule, *states) = rule(block, *states): one evaluation of the block. going: (B, T), true for the tokens that it
is for; None: all. The others keep states[0]."""

Update = Callable[[int, Tensor, Tensor | None], Tensor]
"""update(i, z(i-1), going) -> z(i), z(i-1) where a token does not go on."""


def solve(update: Update, z: Tensor, num_iterations: int, tolerance: float | None = None) -> list[Tensor]:
    """Return z(0) = z, ..., z(num_iterations), by z(i) = update(i, z(i-1), going): the only loop over iterations.

    The first i + 1 iterates do not depend on num_iterations: to stop at i is to run i iterations.
    tolerance: a token goes on while |z(i) - z(i-1)| > tolerance |z(i-1)| (ours). One that has stopped moves no more,
    and so stops for good. None: all go on.
    """
    iterates = [z]
    for i in range(1, num_iterations + 1):
        if i > 1 and iterates[-1] is iterates[-2]:
            iterates.append(iterates[-1])  # none went on
        else:
            iterates.append(update(i, iterates[-1], _moving(iterates, tolerance)))
    return iterates


def _moving(iterates: Sequence[Tensor], tolerance: float | None) -> Tensor | None:
    """Return the tokens (B, T) that go on after z(0), ..., z(i), see `solve`; None: all, of z(0) alone always."""
    if tolerance is None or len(iterates) == 1:
        return None
    return relative_change(iterates[-2], iterates[-1]) > tolerance


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """|after - before| / |before| of each token: (B, T, D) twice -> (B, T), in 32 bits at least."""
    dtype = torch.promote_types(before.dtype, torch.float32)
    before = before.detach().to(dtype)
    return (after.detach().to(dtype) - before).norm(dim=-1) / before.norm(dim=-1)


def extrapolate(iterates: list[Tensor], x: Tensor, coefficients: Sequence[float]) -> list[Tensor]:
    """Replace the last of z(0), ..., z(r) by z* = z(r) + b_1 (z(r) - z(r-1)) + b_2 (z(r-1) - z(r-2)) + ... (ours).

    What an iteration that stops early lacks lies close to the directions of its last steps. x: the layer's input,
    which is z(-1). coefficients: b_1, b_2, ..., at most r + 1 of them; none, or zeros, change no bit.
    """
    z, points = iterates[-1], [x, *iterates]
    for k, b in enumerate(coefficients):
        if b != 0:
            z = torch.add(z, points[-1 - k] - points[-2 - k], alpha=b)
    return [*iterates[:-1], z]


def weighted_sum(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Return sum_k weights[k] * states[k], term by term: a stack would be saved for the backward pass."""
    total = weights[0] * states[0]
    for k in range(1, len(states)):
        total.addcmul_(states[k], weights[k])  # in place, since the backward pass needs no partial sums
    return total


class ExplicitEuler(nn.Module):
    """z(0) = N(x + f(x)): one evaluation, the ordinary Transformer layer. First guess of IIET (paper)."""

    def forward(self, x: Tensor, step: Step, norm: Norm, num_stages: int = 1) -> Tensor:
        """x -> z(0). norm: N, the corrector's. num_stages: always 1."""
        return step(lambda block, x: norm(block(x)), x)


class RungeKutta(nn.Module):
    """k_j = N_j(F(x + b_j k_{j-1})), z(0) = N(x + sum_j g_j k_j): PCformer's predictor, order 2 or 4.

    EMA coefficients: g_j = a (1 - a)^(order - j), a learned (initially 0.5). Fixed: 1/2, 1/2 (order 2) and 1/6,
    1/3, 1/3, 1/6 (order 4). All layers share one instance, with its norms and a, as released. It costs `order`
    evaluations a layer. Prefer IIET where it will be distilled: the paper reports that this hurts PCformer.
    """

    fixed = {2: (1 / 2, 1 / 2), 4: (1 / 6, 1 / 3, 1 / 3, 1 / 6)}
    offsets = {2: (0.0, 1.0), 4: (0.0, 0.5, 0.5, 1.0)}

    def __init__(self, hidden_size: int, order: int, coefficients: str, layer_norm_eps: float):
        super().__init__()
        self.order = order
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=layer_norm_eps) for _ in range(order))
        self.alpha = nn.Parameter(torch.full((1,), 0.5)) if coefficients == "ema" else None

    def coefficients(self) -> Sequence[Tensor | float]:
        """Weights g_j of the stages, first to last."""
        order = self.order
        if self.alpha is None:
            return self.fixed[order]
        return [self.alpha * (1 - self.alpha) ** (order - 1 - j) for j in range(order)]

    def forward(self, x: Tensor, step: Step, norm: Norm, num_stages: int) -> Tensor:
        """x -> z(0). norm: N, the corrector's. num_stages: from 1 to the order; each keeps its weight (ours)."""

        def stage(block: Block, x: Tensor, *stages: Tensor) -> Tensor:
            j = len(stages)
            point = x + self.offsets[self.order][j] * stages[-1] if stages else x
            return self.norms[j](block(point))

        def last(block: Block, x: Tensor, *stages: Tensor) -> Tensor:
            stages = (*stages, stage(block, x, *stages))
            terms = (g * k for g, k in zip(self.coefficients(), stages, strict=False))
            return norm(sum(terms, start=x))

        stages: list[Tensor] = []
        for _ in range(num_stages - 1):
            stages.append(step(stage, x, *stages))
        return _keep_in_graph(step(last, x, *stages), *self.norms[num_stages:].parameters())


class MultistepCorrector(nn.Module):
    """z(i) = LN(F(sum_{k<t} w_k H_k + w_t z(i-1))), x_{t+1} = sum_{k<t} c_k H_k + c_t z(r_t).

    The learned linear multistep history of IIET and PCformer as released. Not for upcycling a Llama, whose function
    it changes from the start; `PicardCorrector` keeps it.
    """

    uses_history = True

    def __init__(self, hidden_size: int, depth: int, layer_norm_eps: float):
        """depth: t, 1-based; the layer sees t states, H_0 to H_{t-1}, and its own."""
        super().__init__()
        self.start_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.update_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.update_weights = nn.Parameter(torch.full((depth + 1,), 1 / (depth + 1)))
        self.output_weights = nn.Parameter(torch.full((depth + 1,), 1 / (depth + 1)))

    def forward(
        self,
        z: Tensor,
        x: Tensor,
        history: Sequence[Tensor],
        num_iterations: int = 0,
        step: Any = None,
        extrapolation: Sequence[float] = (),
        tolerance: float | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """z(0) and H_0, ..., H_{t-1} -> x_{t+1} and z(0), ..., z(num_iterations), the last one extrapolated.

        x: the layer's input, see `extrapolate`. step: not needed without iterations. tolerance: see `solve`.
        """
        w, c = self.update_weights, self.output_weights
        if num_iterations == 0:
            iterates = [_keep_in_graph(z, w, *self.update_norm.parameters())]
        else:
            before = weighted_sum(w, history)  # the same for all iterations

            def rule(block: Block, z: Tensor, before: Tensor) -> Tensor:
                return self.update_norm(block(torch.addcmul(before, w[-1], z)))

            def update(i: int, z: Tensor, going: Tensor | None) -> Tensor:
                return step(rule, z, before, going=going)

            iterates = solve(update, z, num_iterations, tolerance)
            iterates = extrapolate(iterates, x, extrapolation)
        return torch.addcmul(weighted_sum(c, history), c[-1], iterates[-1]), iterates


class PicardCorrector(nn.Module):
    """z(i) = x + f(z(i-1)), or relaxed (1 - a_i) z(i-1) + a_i (x + f(z(i-1))); x_{t+1} = z(r_t).

    The paper's equation as written. The learned relaxation (Krasnoselskii-Mann, ours) starts at a = 0, so that
    a converted Llama computes what it did. Without it the iteration may fail to contract; profile before use.
    """

    uses_history = False

    def __init__(self, max_num_iterations: int, relaxation: bool):
        super().__init__()
        self.start_norm = nn.Identity()
        self.relaxation = nn.Parameter(torch.zeros(max_num_iterations)) if relaxation else None

    def forward(
        self,
        z: Tensor,
        x: Tensor,
        history: Sequence[Tensor],
        num_iterations: int = 0,
        step: Any = None,
        extrapolation: Sequence[float] = (),
        tolerance: float | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """z(0) and the layer's input x -> x_{t+1} and z(0), ..., z(num_iterations), the last one extrapolated.

        history: not used. step: not needed without iterations. tolerance: see `solve`.
        """
        a = self.relaxation

        def update(i: int, z: Tensor, going: Tensor | None) -> Tensor:
            if a is None:
                return step(lambda block, z, x: block(z, x), z, x, going=going)
            return step(lambda block, z, x: torch.lerp(z, block(z, x), a[i - 1]), z, x, going=going)

        if num_iterations == 0 and a is not None:
            z = _keep_in_graph(z, a)
        iterates = extrapolate(solve(update, z, num_iterations, tolerance), x, extrapolation)
        return iterates[-1], iterates


def _keep_in_graph(state: Tensor, *parameters: Tensor) -> Tensor:
    """Return the state, with parameters that the plan leaves unused in its graph; their gradient stays None.

    DistributedDataParallel waits for all parameters unless it is told to look for unused ones.
    """
    return _KeepInGraph.apply(state, *parameters) if torch.is_grad_enabled() and parameters else state


class _KeepInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, *parameters: Tensor) -> Tensor:
        ctx.num_parameters = len(parameters)
        return state.view_as(state)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *(None,) * ctx.num_parameters
