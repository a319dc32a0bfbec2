"""A source of text whose every probability is known: errands on a random map.

A walker is told a goal, goes from place to place until it is there, is told the next goal, and so
on. Its next token is a function of where it is and what it was last told, which stands further and
further back. Now and then it slips to a token drawn uniformly, so every text is possible and every
state has a law; but the states around the usual ways are rare in its texts, and common in those of
a model that has learnt them badly. That is the gap that on-policy distillation closes.

Shape letters: B texts, T tokens, P places, G goals, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftrain._core.rng import torch_generator

PAD_ID, EOS_ID = 0, 1
_FIRST_PLACE = 2


@dataclass(frozen=True, slots=True)
class Walks:
    """The source; texts are token ids ``[B, T]`` that begin with a place and a goal.

    Ids 0 and 1 are padding and the end of a text, which never comes; then come the places, then
    the goals.
    """

    law: Tensor
    """``[P, G, V]``: probabilities of the next token in every state, in float64."""
    goal_places: Tensor
    """``[G]``: the place of each goal."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.law.shape[-1]

    @property
    def entropy(self) -> Tensor:
        """The entropy of every state's law in nats ``[P, G]``."""
        return -(self.law * self.law.clamp(min=1e-300).log()).sum(-1)

    def sample(
        self, num: int, length: int, rng: torch.Generator, *, stray: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Draw texts ``[num, length]``, each from a random goal's place to another goal.

        Args:
            num: How many.
            length: Tokens of each.
            rng: The random source.
            stray: Chance that the next token is drawn uniformly instead of by the law. Such texts
                show every state, and what the law says there.

        Returns:
            The tokens, and a mask that is True where a token was drawn by the law.
        """
        num_places, num_goals, vocab_size = self.law.shape
        place = self.goal_places[torch.randint(num_goals, (num,), generator=rng)]
        goal = torch.randint(num_goals, (num,), generator=rng)
        tokens = [place + _FIRST_PLACE, goal + _FIRST_PLACE + num_places]
        lawful = [torch.ones(num, dtype=torch.bool)] * 2
        for _ in range(length - 2):
            token = torch.multinomial(self.law[place, goal], 1, generator=rng)[:, 0]
            strayed = torch.rand(num, generator=rng) < stray
            uniform = torch.randint(_FIRST_PLACE, vocab_size, (num,), generator=rng)
            token = torch.where(strayed, uniform, token)
            place, goal = self._moved(place, goal, token)
            tokens.append(token)
            lawful.append(~strayed)
        return torch.stack(tokens, 1), torch.stack(lawful, 1)

    def laws(self, texts_BT: Tensor) -> Tensor:
        """Return the law of every token after the first two ``[B, T - 2, V]``."""
        place = texts_BT[:, 0] - _FIRST_PLACE
        goal = texts_BT[:, 1] - _FIRST_PLACE - self.law.shape[0]
        laws = []
        for t in range(2, texts_BT.shape[1]):
            laws.append(self.law[place, goal])
            place, goal = self._moved(place, goal, texts_BT[:, t])
        return torch.stack(laws, 1)

    def log_likelihood(self, texts_BT: Tensor) -> Tensor:
        """Return the log-probability of every token after the first two ``[B, T - 2]``."""
        probs = self.laws(texts_BT).gather(-1, texts_BT[:, 2:, None])[..., 0]
        return probs.clamp(min=1e-300).log()

    def arrivals(self, texts_BT: Tensor) -> Tensor:
        """Return how often each text reaches a goal in the way it should ``[B]``.

        It counts where a walker that stood elsewhere comes to its goal by a way of the map.
        """
        num_places = self.law.shape[0]
        place, goal = texts_BT[:, 0] - _FIRST_PLACE, texts_BT[:, 1] - _FIRST_PLACE - num_places
        count = torch.zeros(len(texts_BT))
        floor = 2.0 * self.law.min()
        for t in range(2, texts_BT.shape[1]):
            token = texts_BT[:, t]
            allowed = self.law[place, goal, token] > floor
            before = place == self.goal_places[goal]
            place, goal = self._moved(place, goal, token)
            count += (allowed & ~before & (place == self.goal_places[goal])).float()
        return count

    def _moved(self, place: Tensor, goal: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        num_places = self.law.shape[0]
        index = token - _FIRST_PLACE
        is_place = (index >= 0) & (index < num_places)
        place = torch.where(is_place, index, place)
        return place, torch.where(index >= num_places, index - num_places, goal)


def make_walks(
    *,
    num_places: int = 48,
    num_goals: int = 8,
    num_ways: int = 4,
    sharpness: float = 2.0,
    slip: float = 0.02,
    seed: int = 0,
) -> Walks:
    """Return the source of a random map.

    Args:
        num_places: Places of the map.
        num_goals: How many of them are goals.
        num_ways: Ways out of each place.
        sharpness: Each step away from the goal divides a way's probability by e to this.
        slip: Chance that the next token is drawn uniformly.
        seed: The map is a function of it.
    """
    rng = torch_generator(seed, "walks")
    ways = torch.full((num_places, num_places), torch.inf, dtype=torch.float64)
    for place in range(num_places):
        others = torch.randperm(num_places - 1, generator=rng)[: num_ways - 1]
        ways[place, others + (others >= place)] = 1.0
        ways[place, (place + 1) % num_places] = 1.0  # a ring, so that every place is reached
    distance = ways.clone().fill_diagonal_(0.0)
    for middle in range(num_places):
        distance = torch.minimum(distance, distance[:, middle : middle + 1] + distance[middle])
    goal_places = torch.randperm(num_places, generator=rng)[:num_goals]

    vocab_size = _FIRST_PLACE + num_places + num_goals
    law = torch.zeros(num_places, num_goals, vocab_size, dtype=torch.float64)
    places, goals = slice(_FIRST_PLACE, _FIRST_PLACE + num_places), slice(-num_goals, None)
    for goal, goal_place in enumerate(goal_places.tolist()):
        scores = torch.where(ways.isfinite(), -sharpness * distance[:, goal_place], -torch.inf)
        law[:, goal, places] = scores.softmax(-1)
        law[goal_place, goal] = 0.0
        law[goal_place, goal, goals] = 1.0 / (num_goals - 1)
        law[goal_place, goal, vocab_size - num_goals + goal] = 0.0
    law[..., _FIRST_PLACE:] = (1 - slip) * law[..., _FIRST_PLACE:] + slip / (
        vocab_size - _FIRST_PLACE
    )
    return Walks(law, goal_places)
