"""One model's caches, one for each call of generate."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from selftrain.decoding.cache.compiled import CompiledStep
from selftrain.decoding.cache.fit import CacheKind, DecodingCache, decoding_cache
from selftrain.decoding.cache.holes import HoleyCache
from selftrain.decoding.cache.seq2seq import Seq2SeqCache
from selftrain.decoding.cache.slots import SlotCache


class CacheOpener:
    """Opens the caches of a model, of the kind that was found to fit it.

    Args:
        model: A causal or encoder-decoder model.
        kind: How it should roll back.
        role: What errors call the model.
        compile: Whether to compile its steps, on first use; all caches share the graphs.

    Raises:
        TypeError: If the model cannot be driven so; see :func:`decoding_cache`.
        ValueError: If there is no ``kind`` of that name, or no compiled form of the cache.
    """

    def __init__(
        self, model: nn.Module, kind: CacheKind, *, role: str, compile: bool = False
    ) -> None:
        self.model = model
        self.cache_type = decoding_cache(model, kind, role=role)
        if compile and self.cache_type is not SlotCache:
            raise ValueError(
                f"compile=True needs a causal model and cache='slots'; the {role} uses "
                f"{self.cache_type.__name__}."
            )
        self._step = CompiledStep(model) if compile else None

    def open(
        self, capacity: int, source: Mapping[str, Tensor], *, sizes: Collection[int]
    ) -> DecodingCache:
        """Return an empty cache.

        Args:
            capacity: Most tokens that a row can hold.
            source: What an encoder reads, as arguments of :class:`Seq2SeqCache`; else empty.
            sizes: For which numbers of tokens a row compiled steps are used, if there are any.
        """
        if self.cache_type is Seq2SeqCache:
            return Seq2SeqCache(self.model, capacity=capacity, **source)
        if self.cache_type is HoleyCache:
            return HoleyCache(self.model, capacity=capacity)
        return SlotCache(self.model, capacity=capacity, step=self._step, sizes=sizes)
