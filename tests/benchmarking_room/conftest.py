"""Benchmarks run on the model folders that evaluation is tested on."""

from tests.evaluation_room.conftest import folders, own_cache

__all__ = ["folders", "own_cache"]
