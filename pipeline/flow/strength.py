"""Where a run that starts from an image enters the list of noise levels."""


def check(key: str, strength: float) -> None:
    """Raises ValueError, which names `key`, unless a strength is above 0 and at most 1."""
    if not 0 < strength <= 1:
        raise ValueError(f"{key} must be above 0 and at most 1, got {strength:g}")


def first_step(num_steps: int, strength: float) -> int:
    """The step that a run of a strength starts with: it leaves the last num_steps strength steps, rounded up.

    As `get_timesteps` of diffusers' image-to-image pipelines, with its rounding. So a strength is a share of the steps
    and not a noise level. Above 1 - 1 / num_steps it leaves all steps, and these start at noise alone.

    Raises:
        ValueError: The strength is out of its range, or so small that it leaves no step.
    """
    check("strength", strength)
    first = int(num_steps - num_steps * strength)
    if first == num_steps:
        raise ValueError(f"strength must leave one of the {num_steps} steps, got {strength:g}")
    return first
