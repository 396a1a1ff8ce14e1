"""Which bytes of a file are still missing, and who fetches which of them. Not thread-safe: callers hold a lock."""

from __future__ import annotations

#: The smallest and the largest stretch that one request asks for when several connections share a file.
SMALLEST, LARGEST = 1 << 20, 64 << 20


def joined(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes, as few stretches as possible, sorted."""
    stretches = sorted(stretches)
    whole = stretches[:1]
    for begin, end in stretches[1:]:
        if begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return whole


def free_of(done: list[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The stretches from `begin` to before `end` that are not `done` (sorted and apart)."""
    free = []
    for first, last in done:
        if begin < min(first, end):
            free.append((begin, min(first, end)))
        begin = max(begin, last)
    return [*free, (begin, end)] if begin < end else free


class Stretch:
    """Bytes `pos` to before `end` that one connection fetches; `end` may come closer while it does."""

    __slots__ = ("end", "pos")

    def __init__(self, pos: int, end: int) -> None:
        self.pos = pos
        self.end = end

    @property
    def left(self) -> int:
        return max(0, self.end - self.pos)


class Gaps:
    """The missing bytes of a file of `size` bytes, given what is `done`.

    Connections take stretches by guided self-scheduling: large ones first, ever smaller ones towards the end, so that
    all of them finish together.
    """

    def __init__(self, size: int, done: list[tuple[int, int]]) -> None:
        self._free = free_of(done, 0, size)
        self._taken: list[Stretch] = []

    @property
    def missing(self) -> int:
        return sum(end - begin for begin, end in self._free) + sum(stretch.left for stretch in self._taken)

    def take(self, sharers: int) -> Stretch | None:
        """The next stretch for one of `sharers` connections; None when there is nothing to do for one more."""
        if not self._free:
            return self._split()
        begin, end = self._free.pop(0)
        if sharers > 1:
            fair = (sum(b - a for a, b in self._free) + end - begin) // (2 * sharers)
            most = begin + min(max(fair, SMALLEST), LARGEST)
            if end - most > SMALLEST // 2:
                self._free.insert(0, (most, end))
                end = most
        return self._taking(begin, end)

    def shorten_all(self, sharers: int) -> None:
        """Leave most of the long stretches to others: so the one connection that began makes room for more."""
        for stretch in self._taken:
            keep = stretch.pos + min(max(stretch.left // (2 * sharers), SMALLEST), LARGEST)
            if keep < stretch.end:
                self._free.append((keep, stretch.end))
                stretch.end = keep
        self._free.sort()

    def give_back(self, stretch: Stretch) -> None:
        """What is left of a stretch is free again."""
        self._taken.remove(stretch)
        if stretch.left > 0:
            self._free.append((stretch.pos, stretch.end))
            self._free.sort()

    def _split(self) -> Stretch | None:
        """The back half of what the slowest has left: nobody waits for a straggler alone."""
        longest = max(self._taken, key=lambda stretch: stretch.left, default=None)
        if longest is None or longest.left < 2 * SMALLEST:
            return None
        middle, end = longest.pos + longest.left // 2, longest.end
        longest.end = middle
        return self._taking(middle, end)

    def _taking(self, begin: int, end: int) -> Stretch:
        stretch = Stretch(begin, end)
        self._taken.append(stretch)
        return stretch
