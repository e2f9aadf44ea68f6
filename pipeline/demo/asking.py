"""What a visitor asks for, checked: the prompt, the seed and the number of seeds."""

from dataclasses import dataclass

from pipeline import prompts

LAST_SEED = 2**53 - 1  # the last whole number that every browser tells from its neighbours
LONGEST = 2000  # characters of a prompt; a text encoder reads far fewer
SEEDS = (4, 8)  # the fewest and the most pictures of a row in the gallery


@dataclass(frozen=True)
class Asked:
    """A prompt and the seed of the noise."""

    prompt: str
    seed: int


def check(prompt: str | None, seed: float | None, count: int = 1) -> Asked:
    """The prompt and the first of `count` seeds.

    Raises:
        ValueError: The prompt is empty, too long or no text; or a seed is no whole number of the range.
    """
    text = prompts.clean(prompt or "")
    if not text:
        raise ValueError("the prompt must hold a visible character, got none")
    if len(text) > LONGEST:
        raise ValueError(f"the prompt must have at most {LONGEST} characters, got {len(text)}")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the prompt must be text, got a character that no text holds")
    last = LAST_SEED - count + 1
    if seed is None or seed != int(seed) or not 0 <= seed <= last:
        got = "none" if seed is None else f"{seed:g}" if seed != int(seed) else int(seed)
        raise ValueError(f"the seed must be a whole number from 0 to {last}, got {got}")
    return Asked(text, int(seed))


def check_count(count: float) -> int:
    """The number of seeds of the gallery; raises ValueError outside of SEEDS."""
    if count != int(count) or not SEEDS[0] <= count <= SEEDS[1]:
        raise ValueError(f"the number of seeds must be a whole number from {SEEDS[0]} to {SEEDS[1]}, got {count:g}")
    return int(count)
