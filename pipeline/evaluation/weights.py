"""The adapters that the arms use, on the backbone for one arm at a time; fused into its weights where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline.adapters.switching import prepare


class ArmWeights:
    """The current arm's adapters, as full weights: a student's forward then costs what a bare one does.

    Holds the adapters of one arm only: with the base, two or three copies of the adapted weights, however many arms.
    On a quantised base they are low-rank modules.
    """

    def __init__(
        self,
        transformer: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        home: torch.device | None = None,
    ) -> None:
        """
        Args:
            transformer: The bare backbone.
            states: Adapters with folded scale, by name.
            home: Where weights wait that are not at work; None = where the transformer is.
        """
        self.transformer = transformer
        self.home = home
        self.states = states
        self.held: frozenset[str] = frozenset()
        self.phases = prepare(transformer, {})

    def hold(self, adapters: Iterable[str | None]) -> None:
        """Fuses the adapters of an arm and lets go of the others; the bare weights are in place afterwards.

        Raises:
            ValueError: If an adapter is unknown.
        """
        names = frozenset(name for name in adapters if name is not None)
        for name in sorted(names - self.states.keys()):
            raise ValueError(f"an arm needs the adapter {name!r}, got {', '.join(self.states) or 'none'}")
        self.phases.select(None)
        if names != self.held:
            self.phases.close()
            held = {name: self.states[name] for name in sorted(names)}
            self.phases = prepare(self.transformer, held, home=self.home)
            self.held = names

    def select(self, name: str | None) -> None:
        """Puts a held adapter's weights in place, by reference; None is the bare backbone."""
        self.phases.select(name)
