"""Agents whose network is a table, and a chain of states whose values are known."""

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from selftrain.rl import DQN, Batch, DQNConfig

NUM_STATES, NUM_ACTIONS, DISCOUNT = 5, 2, 0.9
LEFT, RIGHT = 0, 1


class Table(nn.Module):
    """Features that are the state, one-hot: the head's weights are a table then."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.num_features = num_states

    def forward(self, x: Tensor) -> Tensor:
        return x


def table_agent(num_states: int = NUM_STATES, *, head=None, seed: int = 0, **settings) -> DQN:
    config = DQNConfig(
        **{
            "discount": DISCOUNT,
            "num_steps": 1,
            "max_grad_norm": None,
            "warmup_steps": 1,
            "target_decay": None,
            "target_every": 1,
            "capacity": 1000,
            **settings,
        }
    )
    space = gymnasium.spaces.Box(0.0, 1.0, (num_states,))
    actions = gymnasium.spaces.Discrete(NUM_ACTIONS)
    agent = DQN(space, actions, config, head=head, encoder=Table(num_states), seed=seed)
    for network in (agent.network, agent.target.model):
        nn.init.zeros_(network.head.linear.bias)
    return agent


def one_hot(states, num_states: int = NUM_STATES) -> Tensor:
    return torch.eye(num_states)[torch.as_tensor(states)]


def batch_of(states, actions, rewards, discounts, following, num_states=NUM_STATES) -> Batch:
    size = len(states)
    return Batch(
        observations=one_hot(states, num_states),
        actions=torch.as_tensor(actions),
        returns=torch.as_tensor(rewards, dtype=torch.float32),
        discounts=torch.as_tensor(discounts, dtype=torch.float32),
        next_observations=one_hot(following, num_states),
        next_actions=torch.zeros(size, dtype=torch.int64),
        weights=torch.ones(size),
        indices=torch.arange(size),
    )


def chain_step(state: int, action: int) -> tuple[int, float, bool]:
    """Right at the last state ends with 1, left at the first costs 0.5, steps cost 0.1."""
    if action == RIGHT:
        last = state == NUM_STATES - 1
        return min(state + 1, NUM_STATES - 1), 1.0 if last else -0.1, last
    return max(state - 1, 0), -0.5 if state == 0 else 0.1, False


def chain_values() -> np.ndarray:
    """Return Q* of the chain by value iteration, [states, actions]."""
    values = np.zeros((NUM_STATES, NUM_ACTIONS))
    for _ in range(1000):
        new = np.zeros_like(values)
        for s in range(NUM_STATES):
            for a in range(NUM_ACTIONS):
                following, reward, ended = chain_step(s, a)
                new[s, a] = reward + (0.0 if ended else DISCOUNT * values[following].max())
        values = new
    return values


def observe_chain(agent: DQN) -> None:
    """Store every transition of the chain, as episodes of one step."""
    no = np.zeros(1, dtype=bool)
    for s in range(NUM_STATES):
        for a in range(NUM_ACTIONS):
            following, reward, ended = chain_step(s, a)
            at, then = one_hot([s]).numpy(), one_hot([following]).numpy()
            agent.observe(at, np.array([a]), np.array([reward]), no | ended, no | (not ended))
            agent.observe(then, np.array([0]), np.zeros(1), no, no, no)


def q_table(agent: DQN, num_states: int = NUM_STATES) -> np.ndarray:
    with torch.no_grad():
        return agent.values(torch.eye(num_states)).numpy()
