"""A balanced bank spelt out: a list of rows for each class."""

from __future__ import annotations

import math
from typing import Any


class PlainBank:
    """RoTTA's bank as lists of a class each."""

    def __init__(self, capacity: int, classes: int, weights: tuple[float, float]):
        self.capacity, self.classes, self.weights = capacity, classes, weights
        self.lists: list[list[dict]] = [[] for _ in range(classes)]

    def score(self, item: dict) -> float:
        young, sure = self.weights
        return young * 1 / (1 + math.exp(-item["age"] / self.capacity)) + sure * item["u"] / math.log(self.classes)

    def room(self, label: int, new: dict) -> bool:
        total = sum(map(len, self.lists))
        if len(self.lists[label]) < self.capacity / self.classes:
            if total < self.capacity:
                return True
            most = max(map(len, self.lists))
            classes = [k for k, items in enumerate(self.lists) if len(items) == most]
        else:
            classes = [label]
        ranked = sorted(((self.score(item), k, i) for k in classes for i, item in enumerate(self.lists[k])))
        if not ranked:
            return True
        worst, k, i = ranked[-1]
        if worst <= self.score(new):
            return False
        del self.lists[k][i]
        return True

    def add(self, row: Any, label: int, u: float) -> None:
        new = {"row": row, "u": u, "age": 0}
        if self.room(label, new):
            self.lists[label].append(new)
        for items in self.lists:
            for item in items:
                item["age"] += 1
