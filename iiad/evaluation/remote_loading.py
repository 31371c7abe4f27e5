"""Run a model folder by the code that lies in it, where iiad cannot be imported.

A script for a process of its own, started by path; it imports nothing of iiad, and sees to it that nothing else does.

Usage: remote_loading.py FOLDER TOKENS OUTPUT DEVICE THREADS. TOKENS: safetensors with `tokens` (B, T); OUTPUT gets
`logits` (B, T, V) of AutoModelForCausalLM and `hidden` (B, T, D), the last hidden states of AutoModel.
"""

from __future__ import annotations

import sys
from typing import Any


class _Absent:
    """A finder that answers for iiad as if it were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "iiad":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(folder: str, tokens: str, output: str, device: str, num_threads: str) -> None:
    """Load the folder by both Auto classes and write what they compute."""
    sys.meta_path.insert(0, _Absent())
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoModelForCausalLM

    torch.set_num_threads(int(num_threads))  # as in the process that asks, so that sums go the same way
    ids = load_file(tokens)["tokens"].to(device)

    def load(auto_class: Any) -> Any:
        model = auto_class.from_pretrained(folder, dtype="auto", trust_remote_code=True)
        module = type(model).__module__
        if not module.startswith("transformers_modules."):
            raise RuntimeError(f"{auto_class.__name__} took {module} instead of the folder's code")
        for parameter in model.parameters():  # memory of its own, as `subject.align` gives it
            parameter.data = parameter.data.clone()
        return model.to(device).eval()

    with torch.no_grad():
        logits = load(AutoModelForCausalLM)(input_ids=ids, use_cache=False).logits
        hidden = load(AutoModel)(input_ids=ids, use_cache=False).last_hidden_state
    if "iiad" in sys.modules:
        raise RuntimeError("the folder's code imported iiad")
    save_file({"logits": logits.cpu().contiguous(), "hidden": hidden.cpu().contiguous()}, output)


if __name__ == "__main__":
    run(*sys.argv[1:])
