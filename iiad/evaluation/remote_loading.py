"""Run a model folder by its own code, in a process where iiad cannot be imported.

A script, started by path: remote_loading.py FOLDER HEAD INPUTS OUTPUT DEVICE THREADS. HEAD: the Auto class with a
language-modelling head; INPUTS: safetensors with the arguments of a forward call, token ids (B, T); OUTPUT gets
`logits` (B, T, V) of HEAD and `hidden` (B, T, D), the last hidden states of AutoModel.
"""

from __future__ import annotations

import sys
from typing import Any


def run(folder: str, head: str, inputs: str, output: str, device: str, num_threads: str) -> None:
    """Load the folder by both Auto classes and write what they compute."""
    sys.modules["iiad"] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(int(num_threads))  # as in the process that asks, so that sums go the same way
    given = {name: tokens.to(device) for name, tokens in load_file(inputs).items()}

    def load(auto_class: Any) -> Any:
        model = auto_class.from_pretrained(folder, dtype="auto", trust_remote_code=True)
        module = type(model).__module__
        if not module.startswith("transformers_modules."):
            raise RuntimeError(f"{auto_class.__name__}: expected the folder's code, got {module}")
        for parameter in model.parameters():  # memory of its own, as `claims.realign` gives it
            parameter.data = parameter.data.clone()
        return model.to(device).eval()

    with torch.no_grad():
        logits = load(getattr(transformers, head))(**given, use_cache=False).logits
        hidden = load(transformers.AutoModel)(**given, use_cache=False).last_hidden_state
    save_file({"logits": logits.cpu().contiguous(), "hidden": hidden.cpu().contiguous()}, output)


if __name__ == "__main__":
    run(*sys.argv[1:])
