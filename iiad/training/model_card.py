"""Model card that lies in every finished model's folder."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from iiad.checkpoints import auto_class, count_layers
from iiad.identities import layer_name

if TYPE_CHECKING:
    from .run_record import RunRecord

__all__ = ["model_card"]

_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags: [iiad, {model_type}]
---

# {model_type} made by `iiad {command}`

{facts}
{plan}
## Load

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
```
{remark}
## Made from

{inputs}

```json
{settings}
```
"""
_PLAN = """
## Plan

Iterations of each layer, kept (#) and dropped (.):

```
{rows}
```

One page of it all, to which profile, evaluation, bench and check can be added:
`iiad report {folders} --output report.html`
"""
_FAMILY = """
Trained for these plans, of which it runs the first until told otherwise (validation figures):

| plan | iterations per layer | nats a token | accuracy |
| --- | --- | --- | --- |
{rows}

Another: `from_pretrained(folder, {given})`, or `--plan NAME` of iiad's commands.
"""
_REMARK = """
With `import iiad.models` before, `trust_remote_code` is not needed.
"""


def model_card(model: PreTrainedModel, record: RunRecord, results: dict[str, Any]) -> str:
    """Return Markdown on what the model is, what it is made from, what it scores and how to load it."""
    config = model.config
    pairs, (num_layers, before) = config.is_encoder_decoder, count_layers(config)
    layers = f"{before} + {num_layers - before}" if pairs else num_layers
    facts = [
        f"layers: {layers}, width {config.hidden_size}, vocabulary {config.vocab_size}, "
        f"{model.num_parameters():,} parameters",
        f"block evaluations per token: {getattr(config, 'num_evaluations', num_layers)}",
    ]
    if hasattr(config, "iterations"):
        facts.append(f"iterations per layer (the plan): {config.iterations}")
        b = config.stop_extrapolation
        facts += [f"stops extrapolated by: {b}"] if any(b) else []
        if config.tolerance is not None:
            stop = "a token stops in a layer once its state moves by at most this part of its length"
            facts.append(f"{stop}: {config.tolerances}")
    shown = {name: value for name, value in results.items() if not isinstance(value, list)}
    facts += [f"{name.replace('_', ' ')}: {_figure(value)}" for name, value in shown.items()]
    has_code = config.model_type != "llama"  # transformers reads the configuration for the tokenizer, too
    return _CARD.format(
        model_type=config.model_type,
        pipeline="text2text-generation" if pairs else "text-generation",
        auto=auto_class(config).__name__,
        command=record.command,
        facts="\n".join(f"- {fact}" for fact in facts),
        plan=_plan(config, record) + _family(config) if hasattr(config, "iterations") else "",
        trust=", trust_remote_code=True" if has_code else "",
        remark=_REMARK if has_code else "",
        inputs="\n".join(f"- {name}: `{value[:16]}` (sha256)" for name, value in record.inputs.items()),
        settings=json.dumps(record.settings, indent=1),
    )


def _family(config: Any) -> str:
    """List the plans that an elastic student was trained for."""
    listed = getattr(config, "plans", None) or []
    rows = [
        " | ".join(
            [plan["name"], str(plan["num_iterations"])]
            + [_figure(plan[name]) if name in plan else "" for name in ("nll", "accuracy")]
        )
        for plan in listed
    ]
    if not listed:
        return ""
    fields = config.split_plan(listed[-1]["num_iterations"])
    if any("tolerance" in plan for plan in listed):
        fields["tolerance"] = listed[-1].get("tolerance")
    given = ", ".join(f"{name}={value}" for name, value in fields.items())
    return _FAMILY.format(rows="\n".join(f"| {row} |" for row in rows), given=given)


def _plan(config: Any, record: RunRecord) -> str:
    """Draw the plan a layer a line, and name the command that writes the page."""
    encoder, most = getattr(config, "num_encoder_layers", 0), config.max_num_iterations
    rows = [
        f"{layer_name(t, encoder):12} {'#' * r}{'.' * (most - r)}  {r} of {most}"
        for t, r in enumerate(config.iterations)
    ]
    given = [str(record.settings[name]) for name in ("teacher", "plan") if record.settings.get(name)]
    return _PLAN.format(rows="\n".join(rows), folders=shlex.join([*given, "FOLDER"]))


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_figure(part)}" for name, part in value.items())
    form = ".4f" if isinstance(value, float) else "," if isinstance(value, int) else ""
    return format(value, form) if form else str(value)
