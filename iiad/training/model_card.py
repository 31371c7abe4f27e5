"""The model card that lies in every finished model's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from .runs import RunRecord

__all__ = ["model_card"]

_LOADED = {"model": "AutoModelForCausalLM", "tokenizer": "AutoTokenizer"}


def model_card(model: PreTrainedModel, record: RunRecord, results: dict[str, Any]) -> str:
    """Markdown with what the model is, how it came about, what it scores and how to load it."""
    config = model.config
    evaluations = getattr(config, "num_evaluations", config.num_hidden_layers)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [iiad, {config.model_type}]",
        "---",
        "",
        f"# {config.model_type} made by `iiad {record.command}`",
        "",
        f"- layers: {getattr(config, 'num_layers', evaluations)}, width {config.hidden_size}, "
        f"vocabulary {config.vocab_size}, {model.num_parameters():,} parameters",
        f"- block evaluations per token: {evaluations}",
    ]
    if hasattr(config, "num_iterations"):
        lines.append(f"- iterations per layer (the plan): {config.num_iterations}")
    lines += [f"- {name.replace('_', ' ')}: {_figure(value)}" for name, value in results.items()]
    lines += [
        "",
        "## Load",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
    ]
    trust = "" if config.model_type == "llama" else ", trust_remote_code=True"
    # The tokenizer is no code, but transformers reads the model's configuration for it.
    lines += [f"{name} = {kind}.from_pretrained(folder{trust})" for name, kind in _LOADED.items()]
    lines += ["```"]
    if trust:
        lines += ["", "With `import iiad.models` before, `trust_remote_code` is not needed."]
    lines += ["", "## Made from", ""]
    lines += [f"- {name}: `{value[:16]}` (sha256)" for name, value in record.inputs.items()]
    lines += ["", "```json", json.dumps(record.settings, indent=1), "```", ""]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_figure(part)}" for name, part in value.items())
    return (
        f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
