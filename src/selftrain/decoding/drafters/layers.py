"""Self-speculation: the target's own first layers as its draft."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftrain._core.checks import check_int
from selftrain.decoding.cache import SlotCache, slot_obstacle
from selftrain.decoding.drafters.protocol import Draft, Pick, Rows, Setting


def first_layers(model: nn.Module, num_layers: int) -> Any:
    """Return ``model`` cut off after its first layers, followed by its own final norm and head.

    Nothing is copied but the containers: the weights are the model's own, and training or moving
    one of the two trains or moves the other. The model itself is left as it is.

    Args:
        model: A causal model of transformers that keeps its decoder's layers in one list.
        num_layers: How many of them to keep, from 1 to all.

    Raises:
        TypeError: If the list of layers is not found, or the model's ``forward`` was replaced
            (compiled models, ``accelerate`` hooks) and would not pass through the cut.
        ValueError: If the model does not have that many layers.

    Example:
        >>> draft = first_layers(target, 2)  # doctest: +SKIP
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "num_hidden_layers"):
        raise TypeError(
            f"cannot cut {type(model).__name__}: no configuration says its num_hidden_layers."
        )
    check_int("num_layers", num_layers, low=1, high=config.num_hidden_layers)
    shorter = copy.deepcopy(config)
    if getattr(config, "layer_types", None) is not None:
        shorter.layer_types = config.layer_types[:num_layers]
    shorter.num_hidden_layers = num_layers
    path = _path_to_layers(model, config.num_hidden_layers).split(".")
    view = parent = _shallow(model, shorter)
    for name in path[:-1]:
        parent._modules[name] = _shallow(getattr(parent, name), shorter)
        parent = getattr(parent, name)
    parent._modules[path[-1]] = nn.ModuleList(getattr(parent, path[-1])[:num_layers])
    return view


def _path_to_layers(model: nn.Module, num_layers: int) -> str:
    """Return the name of the one list of ``num_layers`` modules that is not inside another."""
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    outer = [name for name in lists if not any(name.startswith(f"{n}.") for n in lists)]
    if len(outer) != 1:
        found = f"{len(outer)} of them: {', '.join(outer)}" if outer else "none"
        raise TypeError(
            f"cannot cut {type(model).__name__}: it should keep its {num_layers} layers in one "
            f"list of modules, and has {found}."
        )
    return outer[0]


def _shallow(module: nn.Module, config: Any) -> nn.Module:
    """Return a module of the same class with the same submodules, under its own configuration."""
    if "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None:
        raise TypeError(
            f"cannot cut {type(module).__name__}: its forward was replaced (by torch.compile or "
            "accelerate), and the replacement runs all layers. Pass the model as it was loaded."
        )
    view = copy.copy(module)
    view._modules = dict(module._modules)
    if hasattr(module, "config"):
        view.config = config
    return view


class LayerDrafter:
    """Propose what the target's own first layers would say, followed by its final norm and head.

    There is no second model and no second cache: what the draft computes for a token are the
    target's keys and values of these layers, and they go to the target's own slots. The target's
    forward writes them again, with the same values. Models trained with early exits are accepted
    often (LayerSkip, arXiv 2404.16710); others seldom, unless most layers are kept.

    Args:
        num_layers: How many layers to keep, at least 1 and less than the target has.

    Raises:
        ValueError: If ``num_layers`` is below 1.
    """

    def __init__(self, num_layers: int) -> None:
        check_int("num_layers", num_layers, low=1)
        self.num_layers = num_layers

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """None besides the target."""
        return ()

    def check(self, target: PreTrainedModel) -> None:
        """Raise ``TypeError`` if the target cannot be cut, ``ValueError`` if it is not longer."""
        view = first_layers(target, self.num_layers)
        if self.num_layers == target.config.num_hidden_layers:
            raise ValueError(
                f"num_layers is {self.num_layers}, and so many has the whole target; a draft that "
                "costs what the target costs gains nothing. Keep fewer."
            )
        obstacle = slot_obstacle(view)
        if obstacle is not None:
            raise TypeError(f"the target's first layers cannot be used as a draft: {obstacle}.")

    def start(self, setting: Setting) -> "_LayerDraft":
        """Begin a call; nothing needs to be computed, the target's slots hold the prompts."""
        view = first_layers(setting.target.model, self.num_layers)
        return _LayerDraft(setting.target.view(view))


class _LayerDraft:
    """The first layers at work on a batch, over the target's slots."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache

    def propose(self, rows: Rows, num_tokens: int, pick: Pick) -> Draft:
        # The target has seen all but the last token: the draft never has anything to catch up on.
        positions = rows.lengths.unsqueeze(1) - 1
        fed = rows.tokens.gather(1, positions)
        picks = []
        for slot in range(num_tokens):
            logits = self.cache.forward(fed, positions, extent=rows.extent + slot, last_only=True)
            picks.append(pick(logits[:, -1], slot))
            fed = picks[-1][0].unsqueeze(1)
            positions = torch.minimum(rows.lengths + slot, rows.last).unsqueeze(1)
        return Draft.stack(picks)

    def select(self, rows: Tensor) -> None:
        """Do nothing: the slots are the target's, and it keeps its rows itself."""
