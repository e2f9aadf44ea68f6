"""The page's own HTML: pictures with their clocks, the levels, the gallery and the facts. Every text is escaped."""

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from pipeline.demo import texts
from pipeline.demo.gallery import Gallery
from pipeline.demo.pictures import Drawn
from pipeline.demo.race import STUDENT, TEACHER, Sight
from pipeline.demo.studio import Choice, phases
from pipeline.flow.guidance import forwards

PNG_PIXELS = 256**2  # larger pictures are shown as JPEG, which is an order of magnitude faster
TITLES = {TEACHER: "Teacher", STUDENT: "Student"}
KINDS = {"estimate": "estimates of x_0", "state": "states x"}


def picture(image: np.ndarray, alt: str) -> str:
    """An <img> that holds its own bytes, so that nothing is written to disk; image uint8 (H, W, 3)."""
    small, buffer = image.shape[0] * image.shape[1] <= PNG_PIXELS, io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 92}))
    data = base64.b64encode(buffer.getvalue()).decode()
    sharp = ' class="small"' if small else ""
    return f'<img{sharp} alt="{escape(alt)}" src="data:image/{"png" if small else "jpeg"};base64,{data}">'


def stage(sight: Sight, level: int | None = None, kind: str = "estimate") -> str:
    """Teacher and student side by side, with a line below.

    Args:
        sight: What the visitor sees.
        level: The number of the noise level to show; None = the pictures themselves.
        kind: A key of KINDS.
    """
    shown = [who for who in (TEACHER, STUDENT) if who == TEACHER or sight.choice.bundle is not None]
    panels = "".join(_panel(sight, who, level, kind) for who in shown)
    return (
        f'<div class="g-stage g-{len(shown)}">{panels}</div>'
        f'<p class="g-verdict" aria-live="polite">{escape(texts.verdict(sight))}</p>'
    )


def _panel(sight: Sight, who: str, level: int | None, kind: str) -> str:
    drawn, choice = sight.drawings.get(who), sight.choice
    ratio = f"{choice.setting.width} / {choice.setting.height}"
    head = f"<b>{TITLES[who]}</b><span>{escape(texts.subtitle(choice, who))}</span>"
    image, caption = _shown(drawn, level, kind)
    prompt = sight.asked.prompt if sight.asked else ""
    inside = picture(image, f"{TITLES[who]}: {prompt}") if image is not None else ""
    state = "done" if drawn and drawn.done else "drawing" if drawn else "empty"
    count, total, seconds = (drawn.forwards, drawn.total, drawn.seconds) if drawn else (0, _total(choice, who), 0.0)
    return (
        f'<figure class="g-panel g-{who} g-{state}" data-who="{who}"><figcaption>{head}</figcaption>'
        f'<div class="g-frame" style="aspect-ratio:{ratio}">{inside}{caption}</div>'
        f'<div class="g-bar"><i style="width:{100 * count / total:.1f}%"></i></div>'
        f'<div class="g-numbers"><span class="g-forwards">{count} / {total} forwards</span>'
        f'<span class="g-clock">{seconds:.2f} s</span></div></figure>'
    )


def _total(choice: Choice, who: str) -> int:
    guidance = choice.setting.guidance
    if who == TEACHER:
        return choice.setting.teacher_steps * forwards(guidance.teacher_true_cfg_scale)
    return len(phases(choice)) * forwards(guidance.student_true_cfg_scale)


def _shown(drawn: Drawn | None, level: int | None, kind: str) -> tuple[np.ndarray | None, str]:
    """The image of a panel, and the words on it."""
    if drawn is None or drawn.image is None:
        return None, ""
    if not drawn.done:
        return drawn.image, '<em class="g-tag">estimate of x_0</em>'
    if level is None or level >= len(drawn.frames) - 1:
        return drawn.image, ""
    frame = drawn.frames[level]
    return getattr(frame, kind), f'<em class="g-tag">{kind} at sigma {frame.sigma:.3f}</em>'


def strip(sight: Sight, level: int | None = None, kind: str = "estimate") -> str:
    """All frames in two rows, a column for each noise level, with the handoff between two columns."""
    choice = sight.choice
    acting = phases(choice) or ("",) * len(choice.levels)
    columns = []
    for number, sigma in enumerate((*choice.levels, 0.0)):
        last = number == len(choice.levels)
        handoff = 0 < number < len(acting) and acting[number] != acting[number - 1]
        place = 0 if last or not acting[number] else list(dict.fromkeys(acting)).index(acting[number]) + 1
        active = number == (len(choice.levels) if level is None else level)
        cells = "".join(_cell(sight.drawings.get(who), number, kind) for who in (TEACHER, STUDENT) if _row(sight, who))
        name = "end" if last else acting[number]
        columns.append(
            f'<div class="g-level g-phase{place}{" g-active" if active else ""}{" g-handoff" if handoff else ""}">'
            f"{cells}<b>{sigma:.3f}</b><span>{escape(name)}</span></div>"
        )
    return f'<div class="g-strip">{"".join(columns)}</div>'


def _row(sight: Sight, who: str) -> bool:
    return who == TEACHER or sight.choice.bundle is not None


def _cell(drawn: Drawn | None, number: int, kind: str) -> str:
    inside = picture(getattr(drawn.frames[number], kind), "") if drawn and drawn.done else ""
    return f'<div class="g-thumb">{inside}</div>'


def seeds(shown: Gallery | None) -> str:
    """The gallery: a row for the student and one for the teacher."""
    if shown is None:
        return ""
    rows = []
    for who in (TEACHER, STUDENT):
        if who == STUDENT and shown.choice.bundle is None:
            continue
        done = shown.rows.get(who, ())
        cells = [
            f'<figure class="g-seed">{_seed_picture(done[i] if i < len(done) else None)}'
            f"<figcaption>{shown.asked.seed + i}</figcaption></figure>"
            for i in range(shown.count)
        ]
        spent = sum(one.seconds for one in done)
        rows.append(
            f'<div class="g-row" data-who="{who}"><h4>{TITLES[who]} <span>{spent:.2f} s</span></h4>'
            f'<div class="g-seeds" style="--count:{shown.count}">{"".join(cells)}</div></div>'
        )
    note = f"<p>{texts.STOPPED}</p>" if shown.stopped else ""
    return f'<div class="g-gallery">{"".join(rows)}{note}</div>'


def _seed_picture(drawn: Drawn | None) -> str:
    inside = picture(drawn.image, "") if drawn is not None and drawn.image is not None else ""
    return f'<div class="g-frame{" g-drawing" if drawn and not drawn.done else ""}">{inside}</div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and texts."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="g-facts">{lines}</table>'


def head(choice: Choice) -> str:
    """The top of the page."""
    return f'<div class="g-head"><h1>{escape(texts.headline(choice))}</h1><p>{escape(texts.subject(choice))}</p></div>'


def error(sentence: str) -> str:
    """A refusal, or nothing."""
    return f'<p class="g-error" role="alert">{escape(sentence)}</p>' if sentence else ""
