"""The prompts that a section of params.yaml asks for: of a text file, or of the scene grammar."""

from pathlib import Path

from pipeline.names import meant_path
from pipeline.scenes import captions


def load_prompts(prompts_file: str | None, count: int, split: str, seed: int, section: str) -> list[str]:
    """The first `count` prompts of a text file (one a line, empty lines skipped), or captions of the scene grammar.

    Args:
        prompts_file: The file; None for the grammar.
        count: How many.
        split: The grammar's split: "train", "validation" or "evaluation".
        seed: Of the grammar's draw.
        section: The section of params.yaml that an error names.

    Raises:
        ValueError: The file is missing, has no prompt, or has fewer than `count`.
    """
    if prompts_file is None:
        try:
            return captions.sample(split, count, seed)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from None  # "prompts must be ..."
    try:
        lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{section}.prompts_file must be a text file, got {prompts_file}{meant_path(prompts_file)}"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{section}.prompts_file must be UTF-8 text, and {prompts_file} is not") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{section}.prompts_file must hold a prompt a line, and {prompts_file} is empty")
    if count > len(prompts):
        raise ValueError(f"{section}.prompts must be at most {len(prompts)}, what {prompts_file} holds, got {count}")
    return prompts[:count]
