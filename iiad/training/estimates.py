"""What a recipe's training will take, computed from its sections before anything is there. All estimates are ours.

Legend: D model width, F MLP width, N query heads, K key/value heads, E head width, L layers, T tokens of a block,
t the layer from 1.
"""

from __future__ import annotations

from .model_sections import ModelSection
from .stage_sections import OptimizationSection, TrainingSection

__all__ = [
    "blocks_per_process_step",
    "count_parameters",
    "evaluations_per_layer",
    "forward_flops",
    "training_bytes",
    "training_flops",
]

STATE_BYTES = 16  # a parameter, its gradient and Adam's two averages, each in float32
AUTOCAST_BYTES = 2  # a parameter's copy in bfloat16, kept for the backward pass
SAVED_PER_EVALUATION = (
    64  # bytes per token and feature that autograd keeps at most, in bf16, F = 2.75 D: counted
)
SAVED_PER_LAYER = 10  # the same for a layer that is computed again in the backward pass: counted


def count_parameters(model: ModelSection, vocab_size: int) -> int:
    """All parameters, those that the plan leaves idle included."""
    D, L = model.hidden_size, model.num_layers
    count = D * vocab_size * (1 if model.tie_word_embeddings else 2) + D
    count += L * (_block_weights(model) + 2 * D)
    if model.solver == "pcformer":
        count += model.predictor_order * 2 * D + (model.coefficients == "ema")
    if model.solver == "pcformer" or (model.solver == "iiet" and model.history):
        count += L * 4 * D + sum(2 * (t + 1) for t in range(1, L + 1))
    elif model.solver == "iiet" and model.relaxation:
        count += L * max(_iterations(model))
    return count


def evaluations_per_layer(model: ModelSection) -> list[int]:
    """Evaluations of each layer's block for one token."""
    if model.solver == "transformer":
        return [1] * model.num_layers
    if model.solver == "pcformer":
        return [model.predictor_order + 1] * model.num_layers
    return [1 + r for r in _iterations(model)]


def blocks_per_process_step(training: OptimizationSection) -> int:
    """Blocks that one process learns from in one optimizer step."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def forward_flops(
    model: ModelSection, vocab_size: int, context: int, evaluations: float
) -> tuple[float, float]:
    """Floating-point operations for one token of a block of T = context: in that many evaluations, and in the head.

    Counted are matrix products, a multiply-add as 2, with attention over (T + 1) / 2 tokens.
    """
    attention = 2 * model.num_attention_heads * _head_dim(model) * (context + 1)
    blocks = evaluations * (2 * _block_weights(model) + attention)
    if model.cache_policy == "shared" and model.solver != "transformer":
        heads = model.num_key_value_heads or model.num_attention_heads
        blocks -= (evaluations - model.num_layers) * 4 * model.hidden_size * heads * _head_dim(model)
    return blocks, 2 * model.hidden_size * vocab_size


def training_flops(model: ModelSection, training: TrainingSection, vocab_size: int, context: int) -> float:
    """Floating-point operations of the whole training: three forward passes' worth, four where layers are recomputed.

    The first phase of an IIET runs no iterations.
    """
    full = sum(evaluations_per_layer(model))
    start = training.iterations_start if model.solver == "iiet" else 0.0
    layers, head = forward_flops(model, vocab_size, context, start * model.num_layers + (1 - start) * full)
    tokens = training.max_steps * blocks_per_process_step(training) * context
    return tokens * ((4 if training.gradient_checkpointing else 3) * layers + 3 * head)


def training_bytes(
    model: ModelSection, training: OptimizationSection, vocab_size: int, context: int
) -> float:
    """Memory of one process: weights with all that Adam keeps, and activations; no logits, and nothing sharded.

    Activations are those of autocast to bf16; in float32 they take up to twice as much.
    """
    states = (STATE_BYTES + (AUTOCAST_BYTES if training.bf16 else 0)) * count_parameters(model, vocab_size)
    runs = evaluations_per_layer(model)
    recomputed = {False: 0, "evaluation": 1}.get(training.gradient_checkpointing, max(runs))
    if recomputed:
        kept = sum(runs) if training.gradient_checkpointing == "evaluation" else len(runs)
        saved = SAVED_PER_LAYER * kept + SAVED_PER_EVALUATION * recomputed
    else:
        saved = SAVED_PER_EVALUATION * sum(runs) + SAVED_PER_LAYER * len(runs)
    tokens = training.per_device_train_batch_size * context
    return states + tokens * model.hidden_size * saved


def _block_weights(model: ModelSection) -> int:
    D, N, E = model.hidden_size, model.num_attention_heads, _head_dim(model)
    K = model.num_key_value_heads or N
    return D * E * (2 * N + 2 * K) + 3 * D * model.intermediate_size


def _head_dim(model: ModelSection) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def _iterations(model: ModelSection) -> list[int]:
    given = 3 if model.num_iterations is None else model.num_iterations
    return given if isinstance(given, list) else [given] * model.num_layers
