"""The module that DDP and FSDP2 wrap: a model as hidden states and a head, with its objective.

Legend: B batch, T tokens, D model width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from iiad.data import model_inputs

from .batches import Batch
from .head import asked_labels, asked_values, head_loss

__all__ = [
    "LanguageModelling",
    "Learner",
    "Objective",
    "hidden_states",
    "set_recompute",
    "shard",
    "unsharded",
]


class Objective(Protocol):
    """The loss of a stage."""

    def signal(self, batch: Batch) -> Any:
        """Return the teacher's signal for a batch; called before the forward pass, outside of the wrapped module."""

    def __call__(self, learner: Learner, batch: Batch, signal: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and, for the log, its parts by name, detached; means over the tokens of the batch."""


class Learner(nn.Module):
    """A language model whose head is a plain matrix, without its logits: losses make them in chunks.

    bf16: run the layers under autocast. compile_backend: compile them with torch.compile; None: do not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective | None = None,
        bf16: bool = False,
        compile_backend: str | None = None,
    ):
        super().__init__()
        self.model, self.objective, self.bf16 = model, objective, bf16
        base = model.base_model
        # In a tuple, as no submodule: its parameters would be there twice.
        self._trunk = (torch.compile(base, backend=compile_backend) if compile_backend else base,)

    def forward(self, batch: Batch, signal: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch, with input_ids (B, T), and the teacher's signal -> the loss and its parts, each a scalar."""
        assert self.objective is not None
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective(self, batch, signal)

    def states(self, batch: Batch, output_hidden_states: bool = False) -> Any:
        """batch, as `model_inputs` -> last_hidden_state (B, T, D) and, if asked for, `hidden_states`."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            return self._trunk[0](
                **model_inputs(batch), use_cache=False, output_hidden_states=output_hidden_states
            )

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(base model, *args) under the learner's autocast, with its parameters there if they are sharded."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            return function(self.model.base_model, *args)

    @property
    def head(self) -> Tensor:
        """The head's weight, (V, D); where it is sharded, whole from a forward pass to its backward pass."""
        return self.model.get_output_embeddings().weight


def hidden_states(output: Any) -> tuple[Tensor, ...]:
    """Return the L + 1 hidden states (B, T, D) of an output, an encoder-decoder's those of its decoder."""
    found = getattr(output, "decoder_hidden_states", None)
    states: tuple[Tensor, ...] = output.hidden_states if found is None else found
    return states


def shard(learner: Learner) -> None:
    """Shard parameters over all processes with FSDP2, a unit a layer; embeddings, norm and head are the last unit.

    In place. The head stays whole from the forward pass on, so that the loss can use it in chunks.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (PartialState().num_processes,))
    for layer in learner.model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    for method in ("states", "run"):
        register_fsdp_forward_method(learner, method)


def set_recompute(model: PreTrainedModel, level: bool | str) -> None:
    """Have the backward pass compute again what `training.gradient_checkpointing` says; exact."""
    if hasattr(model, "set_recompute"):
        model.set_recompute(level if isinstance(level, str) else "layer" if level else "none")
    elif level:  # a Transformer, whose layers are evaluated once
        enable = "activation_checkpointing_enable"  # older transformers know the old name alone
        (getattr(model, enable, None) or model.gradient_checkpointing_enable)({"use_reentrant": False})


@contextmanager
def unsharded(learner: Learner) -> Iterator[None]:
    """Let the model be run by itself, without its learner, inside of the block. After a training step only."""
    if isinstance(learner, FSDPModule):
        learner.unshard()
    yield
    if isinstance(learner, FSDPModule):
        learner.reshard()


class LanguageModelling:
    """Cross-entropy of the tokens that a batch asks for: learning from text and pairs.

    label_smoothing: as `head_loss` says; the part "ce" is without it.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def signal(self, batch: Batch) -> None:
        """There is no teacher."""

    def __call__(self, learner: Learner, batch: Batch, signal: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch with its labels (B, T) -> mean nats per token that is asked for, and as the part "ce"."""
        states = learner.states(batch).last_hidden_state
        found = head_loss(
            asked_values(states, batch),
            learner.head,
            asked_labels(batch),
            label_smoothing=self.label_smoothing,
        )
        return found.loss, {"ce": found.ce}
