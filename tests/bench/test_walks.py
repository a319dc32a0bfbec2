import math

import pytest
import torch

from selftrain.bench.walks import make_walks


@pytest.fixture(scope="module")
def walks():
    return make_walks(num_places=12, num_goals=3, num_ways=3, sharpness=3.0, slip=0.05, seed=1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_state_has_a_law_over_every_token_but_padding_and_end(walks):
    assert torch.allclose(walks.law.sum(-1), torch.ones(12, 3, dtype=torch.float64))
    assert (walks.law[..., :2] == 0).all()
    assert (walks.law[..., 2:] > 0).all()


def test_texts_follow_the_law_that_is_reported(walks):
    """The mean log-likelihood of a text is minus the mean entropy of the states it passes."""
    texts, _ = walks.sample(4000, 20, rng())
    surprise = -walks.log_likelihood(texts)
    laws = walks.laws(texts)
    entropy = -(laws * laws.clamp(min=1e-300).log()).sum(-1)
    error = 4 * float(surprise.std()) / math.sqrt(surprise.numel())
    assert float(surprise.mean()) == pytest.approx(float(entropy.mean()), abs=error)


def test_a_walker_told_a_goal_gets_there_and_is_told_another(walks):
    sure = make_walks(num_places=12, num_goals=3, num_ways=3, sharpness=30.0, slip=0.0, seed=1)
    texts, _ = sure.sample(50, 40, rng())
    assert (sure.arrivals(texts) >= 4).all()
    # A goal, once reached, is followed by the next goal and by nothing else.
    place, goal = texts[:, 2:-1], texts[:, 3:]
    told = goal >= 14
    assert torch.isin(place[told] - 2, sure.goal_places).all()


def test_walkers_led_astray_are_marked_and_seldom_lawful(walks):
    texts, lawful = walks.sample(500, 30, rng(), stray=0.3)
    assert float((~lawful[:, 2:]).float().mean()) == pytest.approx(0.3, abs=0.02)
    likelihood = walks.log_likelihood(texts)
    assert likelihood[lawful[:, 2:]].mean() > likelihood[~lawful[:, 2:]].mean() + 1
    _, untouched = walks.sample(5, 30, rng())
    assert untouched.all()


def test_the_source_is_a_function_of_its_seed():
    assert torch.equal(make_walks(seed=3).law, make_walks(seed=3).law)
    assert not torch.equal(make_walks(seed=3).law, make_walks(seed=4).law)
