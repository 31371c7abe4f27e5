"""Model folders, a text and a plan, small enough to be evaluated, timed and run in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iiad.checkpoints import identify_model, save_checkpoint
from iiad.data import train_tokenizer
from iiad.models import IIETForCausalLM
from iiad.planning import Plan
from tests.conftest import SHAPE, make_iiet, stir

TEXT = """class Stack:
    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)
        return len(self.items) + 100

# Ünïcödé, 漢字 and 🙂
"""
BUDGET = [0, 2, 1]


@dataclass(frozen=True)
class Folders:
    """What the tests of evaluation, benchmarking and generation read."""

    teacher: Path
    student: Path
    llama: Path
    other_tokenizer: Path
    text: Path
    plan: Path


def make_llama(**fields: object) -> LlamaForCausalLM:
    """A Llama of the shape of the small IIETs."""
    shape = {name: value for name, value in SHAPE.items() if name != "num_layers"}
    fields = {**shape, "num_hidden_layers": SHAPE["num_layers"], "tie_word_embeddings": True, **fields}
    return stir(LlamaForCausalLM(LlamaConfig(**fields)))


def learn(model: IIETForCausalLM, tokenizer: object) -> None:
    """A few steps on the text, so that the model gets some tokens right."""
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])[:, :60]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


def write_folders(root: Path) -> Folders:
    """Save everything once."""
    tokenizer, other = train_tokenizer([TEXT], 320), train_tokenizer([TEXT], 270)
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    fields = {"vocab_size": len(tokenizer), **tokens}
    teacher = make_iiet(num_iterations=3, **fields)
    learn(teacher, tokenizer)
    folders = Folders(
        *(root / name for name in ("teacher", "student", "llama", "other", "text.txt", "plan.json"))
    )
    save_checkpoint(teacher, folders.teacher, tokenizer=tokenizer)
    Plan.explicit(BUDGET, identify_model(teacher, folders.teacher)).save(folders.plan)
    student = make_iiet(num_iterations=BUDGET, max_num_iterations=3, **fields)
    student.load_state_dict(teacher.state_dict())
    save_checkpoint(stir(student, scale=0.01), folders.student, tokenizer=tokenizer)
    save_checkpoint(make_llama(**fields), folders.llama, tokenizer=tokenizer)
    small = make_iiet(num_iterations=1, vocab_size=len(other), max_position_embeddings=40, **tokens)
    save_checkpoint(small, folders.other_tokenizer, tokenizer=other)
    folders.text.write_text(TEXT * 3, encoding="utf-8")
    return folders
