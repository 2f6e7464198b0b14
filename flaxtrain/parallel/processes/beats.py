"""Signs of life: what each process publishes all the time, and what one knows of the others."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from flaxtrain.parallel.processes.coordination import Store

__all__ = ["Beat", "Beats", "Peers"]

_BEATS = "flaxtrain/beats"


@dataclass(frozen=True)
class Beat:
    """A sign of life.

    Attributes:
        number: of the beat; what makes it a new one.
        batches: how many the process has reported, None before its first.
        ended: whether it has done its work and waits for the others to end, too.
        suspects: whether an operation across processes has failed in it.
        asked: the last run that somebody wants to end, see `Ending`; 0 for none.
        bound: how many batches of it the process will make in any case.
        run: the run that the process makes, of those that all make.

    Example:
        >>> Beat.from_text(Beat(3, batches=37).text()).batches
        37
    """

    number: int
    batches: int | None = None
    ended: bool = False
    suspects: bool = False
    asked: int = 0
    bound: int = 0
    run: int = 0

    def text(self) -> str:
        """Returns the beat as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Beat:
        """Reads what `text` wrote."""
        return cls(**json.loads(text))


@dataclass
class Peers:
    """The last beat of each process that is watched, and how long ago it came.

    Args:
        watched: numbers of the processes.

    Example:
        >>> peers = Peers([1, 2])
        >>> peers.passed(5.0); peers.heard(2, Beat(0, batches=7)); peers.passed(4.0)
        >>> peers.silent(8.0), peers.silence(2), peers.batches(2)
        (1, 4.0, 7)
    """

    watched: Iterable[int]
    _beats: dict[int, Beat] = field(init=False)
    _silence: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self._beats = {process: Beat(-1) for process in self.watched}
        self._silence = dict.fromkeys(self._beats, 0.0)

    def heard(self, process: int, beat: Beat) -> None:
        """Notes a beat; one that was there before is no news."""
        known = self._beats.get(process)
        if known is not None and known != beat:
            self._beats[process] = beat
            self._silence[process] = 0.0

    def passed(self, seconds: float) -> None:
        """Lets time pass."""
        for process in self._silence:
            self._silence[process] += seconds

    def silence(self, process: int) -> float:
        """Returns for how many seconds nothing new was heard."""
        return self._silence[process]

    def batches(self, process: int) -> int | None:
        """Returns how many are known, None before the first and of who is not watched."""
        beat = self._beats.get(process)
        return None if beat is None else beat.batches

    def bound(self, run: int) -> int | None:
        """Returns how many batches of a run one of them will make; None until all have said."""
        if any(beat.asked < run for beat in self._beats.values()):
            return None
        return max(beat.bound for beat in self._beats.values())

    def ahead(self, run: int, batches: int) -> int | None:
        """Returns who has made more batches of a run, if anybody has."""
        beats = self._beats.items()
        found = (
            who for who, beat in beats if beat.run == run and (beat.batches or 0) > batches
        )
        return next(found, None)

    def silent(
        self, limit: float, *, start: float = 0.0, without: Collection[int] = ()
    ) -> int | None:
        """Returns who was not heard for longest, if that is longer than `limit` seconds.

        Args:
            limit: seconds of silence.
            start: seconds until the first beat, where that is more.
            without: processes that may be silent.
        """
        late = [
            process
            for process, beat in self._beats.items()
            if process not in without
            and self._silence[process] > (max(start, limit) if beat.number < 0 else limit)
        ]
        return max(late, key=self._silence.__getitem__, default=None)

    def all_ended(self) -> bool:
        """Whether every watched process waits for the end."""
        return all(beat.ended for beat in self._beats.values())

    def any_suspects(self) -> bool:
        """Whether an operation across processes has failed in one of them."""
        return any(beat.suspects for beat in self._beats.values())


class Beats:
    """Gives the beats of one process, and reads those of the ones that it watches.

    Process 0 watches all others, and these watch process 0.

    Args:
        store: the texts that all processes see.
        index: the number of this process.
        count: how many there are.

    Attributes:
        peers: what was read.
    """

    def __init__(self, store: Store, index: int, count: int) -> None:
        self.peers = Peers(range(1, count) if index == 0 else [0])
        self._store, self._index, self._number = store, index, 0

    def exchange(self, *news: Any) -> None:
        """Publishes one beat, and reads the others'.

        Args:
            *news: fields of `Beat`, from the second one.
        """
        self._store.put(f"{_BEATS}/{self._index}", Beat(self._number, *news).text())
        self._number += 1
        if self._index:
            text = self._store.get(f"{_BEATS}/0", 0)
            texts = {} if text is None else {"0": text}
        else:
            texts = self._store.under(_BEATS)
        for process, text in texts.items():
            self.peers.heard(int(process), Beat.from_text(text))

    def at_work(self) -> dict[int, int | None]:
        """Returns the processes that have not come to their end, and their last batches."""
        texts = self._store.under(_BEATS)
        beats = {int(process): Beat.from_text(text) for process, text in texts.items()}
        return {process: beat.batches for process, beat in beats.items() if not beat.ended}
