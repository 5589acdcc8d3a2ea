"""Who has won against whom: the same blocks were wanted of all, and some had what others had not.

What all had, or none had, says nothing about who is better. Each of the rest is a toss that one of
two has won; of `n` tosses of a fair coin the lead is √n, give or take. Hits come by whole chains,
so there are fewer tosses than it looks: a lead counts from 5·√n, and not from 3·√n.
"""

from collections.abc import Sequence

_MIN_SIGMAS = 5.0
_MEMORY = 0.9
"""What of the score is left after an epoch: old epochs count, ever less."""


class Score:
    """Wins of each over each."""

    def __init__(self, num_players: int) -> None:
        self._wins = [[0.0] * num_players for _ in range(num_players)]

    def add(self, hits: Sequence[bool]) -> None:
        """Of one block: which had it."""
        if all(hits) or not any(hits):
            return
        for player, has_hit in enumerate(hits):
            if has_hit:
                for other, other_has_hit in enumerate(hits):
                    self._wins[player][other] += not other_has_hit

    def better_than(self, player: int) -> int:
        """Who leads most over `player`, if that is beyond accident; else `player`."""
        rows = range(len(self._wins))
        leads = [self._wins[other][player] - self._wins[player][other] for other in rows]
        best = max(range(len(leads)), key=leads.__getitem__)
        tosses = self._wins[best][player] + self._wins[player][best]
        return best if leads[best] > _MIN_SIGMAS * tosses**0.5 else player

    def fade(self) -> None:
        """An epoch is over."""
        self._wins = [[wins * _MEMORY for wins in row] for row in self._wins]
