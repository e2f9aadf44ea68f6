"""The sentences of the page."""

from pipeline.demo.asking import SEEDS
from pipeline.demo.race import STUDENT, TEACHER, Sight
from pipeline.demo.studio import Choice
from pipeline.flow.guidance import forwards

TITLE = "Glance: a pair beside its teacher"
NO_PAIR = (
    "There is no pair in {bundle} yet, so only the teacher draws. `make run` trains a pair in minutes; then choose it "
    "under Pair."
)
HOW_TIMED = (
    "Student and teacher draw one after the other, each alone on the device, so that neither slows the other down. "
    "Each clock counts its own text encoding, forwards and last decoding. It leaves out the previews, the waiting and "
    "the page."
)
HOW_SHOWN = (
    "Both rows show the picture in the making at the same noise levels, those of the student's steps; the teacher's "
    "are the nearest of its steps. An estimate is the decoded x_0 = x - sigma v, the picture that the model expects at "
    "that level. A state is the decoded x itself, with its noise. The slider shows one level in the large pictures."
)
HOW_DIVERSE = (
    f"{SEEDS[0]} to {SEEDS[1]} pictures of the prompt above, from the seed above and the following ones, student and "
    "teacher from the same noise. A student that lost diversity draws the same picture for each seed."
)
DRAWING = {STUDENT: "The student draws.", TEACHER: "The teacher draws."}
WAITING = "Another picture is being drawn on this device. Yours is next."
STOPPED = "Stopped. The pictures show what was drawn so far."
NOTHING_YET = "Type a prompt and press Draw."
WAY_NOTES = {
    "slow_only": "The slow adapter acts in all steps.",
    "fast_only": "The fast adapter acts in all steps.",
    "swapped": "The fast adapter acts in the early steps, the slow one in the late steps.",
    "neither": "No adapter acts: the base model in the student's steps and guidance.",
}


def headline(choice: Choice) -> str:
    """What the page compares, in one line."""
    guidance, steps = choice.setting.guidance, choice.setting.teacher_steps
    many = steps * forwards(guidance.teacher_true_cfg_scale)
    if choice.student is None:
        return f"The teacher alone: {many} forwards per picture"
    few = len(choice.student.adapters) * forwards(guidance.student_true_cfg_scale)
    return f"{few} forwards instead of {many}, from the same noise"


def subject(choice: Choice) -> str:
    """The bundle and its base."""
    made = f"{choice.setting.width} x {choice.setting.height} pixels"
    return f"{choice.name} on {choice.base.path}, {made}" if choice.name else f"{choice.base.path}, {made}"


def subtitle(choice: Choice, who: str) -> str:
    """How one of the two draws."""
    guidance = choice.setting.guidance
    scale = guidance.student_true_cfg_scale if who == STUDENT else guidance.teacher_true_cfg_scale
    steps = choice.setting.teacher_steps if who == TEACHER else len(choice.student.adapters) if choice.student else 0
    each = f"guidance {scale:g}, two forwards each" if forwards(scale) == 2 else "one forward each"
    return f"{steps} steps, {each}"


def verdict(sight: Sight) -> str:
    """What is going on, or how the two pictures compare."""
    student, teacher = sight.drawings.get(STUDENT), sight.drawings.get(TEACHER)
    if sight.waiting:
        return WAITING
    if sight.stopped:
        return STOPPED
    if student is None and teacher is None:
        return NOTHING_YET
    if teacher is not None and not teacher.done:
        return DRAWING[TEACHER]
    if sight.choice.bundle is None and teacher is not None:
        return f"The teacher took {teacher.seconds:.2f} s for {teacher.forwards} forwards."
    if student is None or not student.done:
        return DRAWING[STUDENT]
    note = f" {WAY_NOTES[sight.way]}" if sight.way in WAY_NOTES else ""
    if teacher is None:
        return f"The student took {student.seconds:.2f} s for {student.forwards} forwards.{note}"
    faster = f"{teacher.seconds / student.seconds:.1f} times as fast"
    return (
        f"The student took {student.seconds:.2f} s for {student.forwards} forwards, the teacher "
        f"{teacher.seconds:.2f} s for {teacher.forwards}: the student is {faster}.{note}"
    )
