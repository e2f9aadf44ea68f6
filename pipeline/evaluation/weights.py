"""Puts the adapters of one arm at a time on the backbone, as `glance generate` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline.adapters.switching import prepare


class ArmWeights:
    """The current arm's adapters: full weights in float32, else products beside the layers (see `switching.fuses`).

    Holds the adapters of one arm only. With the base, full weights are two or three copies of the adapted weights,
    however many arms there are. With full weights, a student's forward costs the same as a bare one.
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
            home: Device of the inactive weights; None = the device of the transformer.
        """
        self.transformer = transformer
        self.home = home
        self.states = states
        self.held: frozenset[str] = frozenset()
        self.phases = prepare(transformer, {})

    def hold(self, adapters: Iterable[str | None]) -> None:
        """Prepares the adapters of an arm and drops the others; afterwards the bare backbone is active.

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
        """Activates a held adapter; None activates the bare backbone."""
        self.phases.select(name)
