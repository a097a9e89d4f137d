"""Sequences of requests that are made when they are needed: all those of a training on a million images would
take more memory than its batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from pipeline.data.batches import Request


@dataclass(frozen=True)
class Lazily(Sequence[Request]):
    """Requests by their number; a slice of them is lazy, too."""

    length: int
    make: Callable[[int], Request]
    """Function from a number below ``length`` to the request."""

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, number: int) -> Request: ...

    @overload
    def __getitem__(self, number: slice) -> "Lazily": ...

    def __getitem__(self, number: int | slice) -> "Request | Lazily":
        if isinstance(number, slice):
            numbers = range(self.length)[number]
            return Lazily(len(numbers), lambda place: self.make(numbers[place]))
        return self.make(range(self.length)[number])
