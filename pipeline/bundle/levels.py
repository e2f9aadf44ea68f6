"""Which adapter acts at a noise level, and where a run from an image enters a bundle's levels."""

from collections.abc import Mapping

from pipeline.flow import strength as strengths


def adapter_at(level: float, starts: Mapping[str, float]) -> str:
    """The adapter of a level: above a handoff the phase before it, at the handoff and below it the phase after it.

    Args:
        level: A base level u. Each model and resolution turns it into another sigma, but into the same order.
        starts: The base level at which each adapter's phase starts, in the order of the phases, from 1 down.
    """
    return [name for name, start in starts.items() if level <= start][-1]


def first_step(path: str, num_steps: int, strength: float) -> int:
    """The step that a run of a strength starts with.

    Args:
        path: How the latents of the bundle move, one of `stepping.PATHS`.
        num_steps: The bundle's number of steps.
        strength: The share of the steps that run.

    Raises:
        ValueError: As `strength.first_step` does; or latents on the bundle's path do not have the levels that the model
            is told, so that there is no level to add noise to an image for.
    """
    if path != "consistent":
        raise ValueError(f"an image as the start needs a bundle with the path consistent, got {path}")
    return strengths.first_step(num_steps, strength)
