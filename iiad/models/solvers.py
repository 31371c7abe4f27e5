"""How one layer solves its depth step: a predictor, a corrector, and the one loop that steps them.

Legend: B batch, T tokens, D model width, L layers, t the layer (1-based as in the paper), i the iteration,
r_t the iterations of layer t, H_k the state after layer k (H_0 the embeddings), x_t the input of layer t.

A block is used through one function, `evaluate(slot, point, base)` = base + f_t(point): the increment of the
pre-norm block at `point`, added to `base`. With base = point it is the ordinary block F_t. `slot` numbers the
evaluations of a layer from 0; each has keys and values of its own.

Every evaluation, with the norm and the combination around it, is one step, made through one function,
`run(step, *arguments)` = step(*arguments): a checkpoint in its place recomputes the step in the backward pass. A
step's tensors are its arguments one by one, so that whoever looks at what is saved for backward sees them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ExplicitEuler",
    "MultistepCorrector",
    "PicardCorrector",
    "Run",
    "RungeKutta",
    "run_step",
    "solve",
    "weighted_sums",
]

Evaluate = Callable[[int, Tensor, Tensor], Tensor]
Finish = Callable[[Tensor], Tensor]
Known = tuple[Tensor, Tensor]
Run = Callable[..., Tensor]
"""Makes one evaluation's step; `run_step` is the plainest."""


def run_step(step: Run, *arguments: Any) -> Tensor:
    """The step's result, with nothing special about it."""
    return step(*arguments)


def solve(
    predictor: ExplicitEuler | RungeKutta,
    corrector: MultistepCorrector | PicardCorrector,
    evaluate: Evaluate,
    x: Tensor,
    known: Known,
    num_iterations: int,
    run: Run = run_step,
) -> list[Tensor]:
    """Every iterate z(0), ..., z(num_iterations) of one depth step: the only loop over iterations there is.

    x: (B, T, D), the layer's input. known: what `corrector.prepare` found to be the same for all iterations.
    run: makes each evaluation's step.
    Returns num_iterations + 1 tensors (B, T, D); the last is the layer's state. Stopping at i needs no other
    code: the first i + 1 iterates do not depend on num_iterations.
    """
    z = predictor(x, evaluate, corrector.start, run)
    iterates = [z]
    for i in range(1, num_iterations + 1):
        z = run(corrector.update, i, predictor.num_evaluations - 1 + i, z, known[0], evaluate)
        iterates.append(z)
    return iterates


def weighted_sums(states: Sequence[Tensor], *weights: Tensor) -> list[Tensor]:
    """For each of the weights the sum over k of weights[k] * states[k], (B, T, D).

    states: n tensors (B, T, D); weights: vectors of at least n. Summed term by term: stacking would copy the whole
    history at every layer and keep the copies for the backward pass. Only where a few tokens are decoded is a copy
    less than the calls that it saves.
    """
    if not _are_decoded(states[0]):
        return [_weighted_sum(vector, states) for vector in weights]
    num_states, shape = len(states), states[0].shape
    rows = torch.cat(tuple(states)).view(num_states, -1)  # (n, B * T * D)
    return [torch.matmul(vector[:num_states], rows).view(shape) for vector in weights]


def _are_decoded(state: Tensor) -> bool:
    """Whether a state (B, T, D) is so small that calls cost more than copies: half the time at 2^14 numbers."""
    if state.numel() > 2**14 or state.is_meta or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled(state.device.type)  # it would round the products


def _weighted_sum(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    total = weights[0] * states[0]
    for k in range(1, len(states)):
        total.addcmul_(states[k], weights[k])  # in place: nothing saves the running total for backward
    return total


class ExplicitEuler(nn.Module):
    """z(0) = x + f(x): one evaluation, the ordinary Transformer layer. First guess of IIET (paper)."""

    num_evaluations = 1

    def forward(self, x: Tensor, evaluate: Evaluate, finish: Finish, run: Run = run_step) -> Tensor:
        """x: (B, T, D) -> z(0) = finish(the prediction): (B, T, D). finish: the corrector's norm, if it has one."""
        return run(lambda x: finish(evaluate(0, x, x)), x)


class RungeKutta(nn.Module):
    """k_j = N_j(F(x + b_j k_{j-1})), p = x + sum_j g_j k_j: PCformer's predictor, order 2 or 4.

    EMA coefficients: g_j = a (1 - a)^(order - j), a learned (initially 0.5). Fixed: 1/2, 1/2 (order 2) and 1/6,
    1/3, 1/3, 1/6 (order 4). One instance serves all layers: norms and a are shared, as released. Its cost grows
    with the order, 1 + order evaluations a layer; where it will be distilled, prefer IIET: the paper reports that
    the same distillation hurts PCformer.
    """

    fixed = {2: (1 / 2, 1 / 2), 4: (1 / 6, 1 / 3, 1 / 3, 1 / 6)}
    offsets = {2: (0.0, 1.0), 4: (0.0, 0.5, 0.5, 1.0)}

    def __init__(self, hidden_size: int, order: int, coefficients: str, layer_norm_eps: float):
        super().__init__()
        self.order = self.num_evaluations = order
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=layer_norm_eps) for _ in range(order))
        self.alpha = nn.Parameter(torch.full((1,), 0.5)) if coefficients == "ema" else None

    def coefficients(self) -> Sequence[Tensor | float]:
        """The weight of each stage, first to last."""
        order = self.order
        if self.alpha is None:
            return self.fixed[order]
        return [self.alpha * (1 - self.alpha) ** (order - 1 - j) for j in range(order)]

    def truncated(self, num_stages: int) -> RungeKutta:
        """The same predictor, on the same parameters, with its last stages left out (ours).

        Those that stay keep their weights: p = x + sum_{j <= num_stages} g_j k_j. num_stages: 1 to the order.
        """
        if not 1 <= num_stages <= self.order:
            raise ValueError(f"num_stages must be from 1 to {self.order}, got {num_stages}")
        shorter = copy.copy(self)
        shorter.num_evaluations = num_stages
        return shorter

    def forward(self, x: Tensor, evaluate: Evaluate, finish: Finish, run: Run = run_step) -> Tensor:
        """x: (B, T, D) -> z(0) = finish(the prediction p): (B, T, D). finish: the corrector's norm."""
        stages: list[Tensor] = []
        for j in range(self.num_evaluations - 1):
            stages.append(run(self.stage, j, evaluate, x, *stages))

        def last(x: Tensor, *stages: Tensor) -> Tensor:
            prediction, stage = x, self.stage(len(stages), evaluate, x, *stages)
            for weight, known in zip(self.coefficients(), (*stages, stage), strict=False):
                prediction = prediction + weight * known
            return finish(prediction)

        return run(last, x, *stages)

    def stage(self, j: int, evaluate: Evaluate, x: Tensor, *stages: Tensor) -> Tensor:
        """k_j (B, T, D), j from 0, from x and k_0, ..., k_{j-1}, each (B, T, D)."""
        point = x + self.offsets[self.order][j] * stages[-1] if stages else x
        return self.norms[j](evaluate(j, point, point))


class MultistepCorrector(nn.Module):
    """z(i) = LN(F(sum_{k<t} w_k H_k + w_t z(i-1))), x_{t+1} = sum_{k<t} c_k H_k + c_t z(r_t).

    The learned linear multistep history of IIET and PCformer as released. Both sums over k < t are the same for
    all iterations of a layer and are computed once. Do not use it to upcycle a Llama: the history is not an
    identity at the start; `PicardCorrector` is.
    """

    uses_history = True

    def __init__(self, hidden_size: int, depth: int, layer_norm_eps: float):
        """depth: t, 1-based; the layer sees t states, H_0 to H_{t-1}, and its own."""
        super().__init__()
        self.start_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.update_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.update_weights = nn.Parameter(torch.full((depth + 1,), 1 / (depth + 1)))
        self.output_weights = nn.Parameter(torch.full((depth + 1,), 1 / (depth + 1)))

    def prepare(self, x: Tensor, history: Sequence[Tensor], num_iterations: int) -> Known:
        """history: H_0 to H_{t-1}, each (B, T, D) -> the two prefix sums, by w and by c, each (B, T, D)."""
        used = (self.update_weights, self.output_weights) if num_iterations else (self.output_weights,)
        sums = weighted_sums(history, *used)
        return sums[0], sums[-1]

    def start(self, prediction: Tensor) -> Tensor:
        """z(0) = LN0(prediction), (B, T, D)."""
        return self.start_norm(prediction)

    def update(self, i: int, slot: int, z: Tensor, update_sum: Tensor, evaluate: Evaluate) -> Tensor:
        """z(i) from z(i-1) and the prefix sum by w, each (B, T, D)."""
        point = torch.addcmul(update_sum, self.update_weights[-1], z)
        return self.update_norm(evaluate(slot, point, point))

    def output(self, z: Tensor, known: Known) -> Tensor:
        """x_{t+1} from the state z, each (B, T, D)."""
        return torch.addcmul(known[1], self.output_weights[-1], z)


class PicardCorrector(nn.Module):
    """z(i) = x + f(z(i-1)), or relaxed (1 - a_i) z(i-1) + a_i (x + f(z(i-1))); x_{t+1} = z(r_t).

    The paper's equation as written. The learned relaxation (Krasnoselskii-Mann, ours) starts at a = 0, so that
    a converted Llama computes what it did. Without it the iteration may fail to contract; profile before use.
    """

    uses_history = False

    def __init__(self, max_num_iterations: int, relaxation: bool):
        super().__init__()
        self.relaxation = nn.Parameter(torch.zeros(max_num_iterations)) if relaxation else None

    def prepare(self, x: Tensor, history: Sequence[Tensor], num_iterations: int) -> Known:
        """The layer's own input x (B, T, D) is all that is known."""
        return x, x

    def start(self, prediction: Tensor) -> Tensor:
        """z(0) is the prediction, (B, T, D)."""
        return prediction

    def update(self, i: int, slot: int, z: Tensor, x: Tensor, evaluate: Evaluate) -> Tensor:
        """z(i) from z(i-1) and the layer's input x, each (B, T, D)."""
        step = evaluate(slot, z, x)
        return step if self.relaxation is None else torch.lerp(z, step, self.relaxation[i - 1])

    def output(self, z: Tensor, known: Known) -> Tensor:
        """x_{t+1} is the state itself, (B, T, D)."""
        return z
