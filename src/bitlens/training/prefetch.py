"""Prepare the next batches while the current one is being used."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def prefetched(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The items of `source`, prepared in a thread of its own, at most `depth` ahead. An error there
    is raised here. To be closed when it is left early."""
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[Any] = deque(thread.submit(next, source, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(thread.submit(next, source, _END))
            yield item
