"""The mailbox protocol as a machine of finitely many states, and a search of all that can happen in it.

Every rank sums row after row without end: it sends a word or more to each of the others, waits for theirs, goes on.
What is sent arrives in any order and at any time; only two words for the same place keep theirs. Turns are counted
modulo ``TURNS``, which ranks that are at most two turns apart cannot tell from counting on, so a search that ends has
seen every run of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TURNS = 8
# A place in a box: whose box, which half, who sends, which word.
Place = tuple[int, int, int, int]


class Word(NamedTuple):
    """What lies in a place: the flag that a rank looks at, and what it takes with it, as whose and of which sum."""

    flag: tuple[int, ...]
    turn: int
    what: str


class Rank(NamedTuple):
    """A rank in its turn: has it sent, and which words has it taken."""

    turn: int
    has_sent: bool
    taken: frozenset[tuple[int, int]]


class State(NamedTuple):
    """All ranks, what lies in every place, and what is on its way there, oldest first."""

    ranks: tuple[Rank, ...]
    held: tuple[tuple[Place, Word], ...]
    sent: tuple[tuple[Place, tuple[Word, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """``kernels/gpu/mailbox.py`` as it stands, or with one thing changed.

    halves    of a box; turn e lies in half ``e % halves``
    flags     numbers that a turn is told by
    whole     a word is stored with its flag; else each of a row's words apart from one flag for all of them
    places    the flag says what is summed
    sums      what each rank sums, turn after turn, over and over; the same for all unless ranks disagree
    """

    ranks: int = 2
    words: int = 1
    halves: int = 2
    flags: int = 4
    whole: bool = True
    places: bool = True
    sums: tuple[tuple[str, ...], ...] = (("rows",),)

    def what(self, rank: int, turn: int) -> str:
        """What a rank sums in a turn."""
        script = self.sums[rank % len(self.sums)]
        return script[turn % len(script)]

    def flag(self, rank: int, turn: int) -> tuple[int, ...]:
        """What a rank writes beside the words of a turn, and waits for."""
        return (turn % self.flags, hash(self.what(rank, turn)) if self.places else 0)

    def start(self) -> State:
        """Nobody has sent anything; turn 0 lies everywhere, as if it had been taken."""
        return State((Rank(1, False, frozenset()),) * self.ranks, (), ())

    def steps(self, state: State) -> Iterator[State]:
        """Every state that one rank, or one word on its way, leads to."""
        for place, words in state.sent:
            held, sent = dict(state.held), dict(state.sent)
            held[place] = words[0]
            sent[place] = words[1:]
            yield _state(state.ranks, held, sent)
        for number, rank in enumerate(state.ranks):
            if not rank.has_sent:
                yield self._sending(state, number, rank)
            else:
                yield from self._taking(state, number, rank)

    def _sending(self, state: State, number: int, rank: Rank) -> State:
        sent = dict(state.sent)
        word = Word(self.flag(number, rank.turn), rank.turn, self.what(number, rank.turn))
        # The last word of a row whose flag stands apart is that flag.
        for owner in self._others(number):
            for index in range(self.words + (not self.whole)):
                place = (owner, rank.turn % self.halves, number, index)
                sent[place] = (*sent.get(place, ()), word)
        return _state(_with(state.ranks, number, rank._replace(has_sent=True)), dict(state.held), sent)

    def _taking(self, state: State, number: int, rank: Rank) -> Iterator[State]:
        held = dict(state.held)
        for sender in self._others(number):
            for index in range(self.words):
                if (sender, index) in rank.taken:
                    continue
                at = (number, rank.turn % self.halves, sender)
                seen = held.get((*at, index if self.whole else self.words))
                if seen is None or seen.flag != self.flag(number, rank.turn):
                    continue
                word = held.get((*at, index))
                if word is None or (word.turn, word.what) != (rank.turn, self.what(number, rank.turn)):
                    raise Mistaken(f"rank {number} took {_told(word)} for {self.what(number, rank.turn)} of its turn")
                taken = rank.taken | {(sender, index)}
                goes_on = len(taken) == self.words * (self.ranks - 1)
                after = Rank((rank.turn + 1) % TURNS, False, frozenset()) if goes_on else rank._replace(taken=taken)
                yield state._replace(ranks=_with(state.ranks, number, after))

    def _others(self, number: int) -> list[int]:
        return [other for other in range(self.ranks) if other != number]


class Mistaken(Exception):
    """A rank took a word that was not meant for its turn."""


class Stuck(Exception):
    """All ranks wait, and nothing is on its way."""


def search(protocol: Protocol, *, most: int = 400_000) -> int:
    """Count the states that a protocol can come to. Raises Mistaken or Stuck for the first wrong one."""
    start = protocol.start()
    known, ahead = {start}, [start]
    while ahead:
        state = ahead.pop()
        follow = list(protocol.steps(state))
        if not follow:
            raise Stuck(f"ranks wait in turns {', '.join(str(rank.turn) for rank in state.ranks)}")
        new = [each for each in follow if each not in known]
        known.update(new)
        ahead += new
        if len(known) > most:
            raise RuntimeError(f"more than {most} states; search a smaller protocol")
    return len(known)


def _state(ranks: tuple[Rank, ...], held: dict[Place, Word], sent: dict[Place, tuple[Word, ...]]) -> State:
    on_way = {place: words for place, words in sent.items() if words}
    return State(ranks, tuple(sorted(held.items())), tuple(sorted(on_way.items())))


def _with(ranks: tuple[Rank, ...], number: int, rank: Rank) -> tuple[Rank, ...]:
    return (*ranks[:number], rank, *ranks[number + 1 :])


def _told(word: Word | None) -> str:
    return "what nobody sent" if word is None else f"{word.what} of turn {word.turn}"
