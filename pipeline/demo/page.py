"""The page: its parts, and which part calls what."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from pipeline.demo import asking, contract, faults, markup, measured, texts, versions, ways
from pipeline.demo.gallery import gallery
from pipeline.demo.race import Sight, race
from pipeline.demo.studio import Choice, Studio, phases
from pipeline.demo.visits import Visits

VISITORS = 16  # who may wait for a picture at once; the studio draws one picture at a time
PLAIN: dict[str, Any] = {"js_on_load": None, "apply_default_css": False}
"""HTML with the page's own style."""
STATE_S = 3600  # seconds after which an idle visitor's pictures are forgotten


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What the page is made for."""

    studio: Studio
    choice: Choice
    find: Callable[[str], Path]
    """The folder of a bundle that is named by its folder or as models:/name@alias."""
    examples: Sequence[str]
    """Prompts to begin with."""
    model: str | None
    """The registered model whose versions are offered; None = no registry."""
    note: str = ""
    """A sentence that the page opens with."""


def build(offered: Offered) -> gr.Blocks:
    """The page as Gradio's blocks."""
    studio, start, visits = offered.studio, offered.choice, Visits()
    top = len(start.levels)

    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, fill_width=True) as blocks:
        sight = gr.State(Sight(choice=start), time_to_live=STATE_S)
        heading = gr.HTML(markup.head(start), **PLAIN)
        refusal = gr.HTML(markup.error(offered.note), **PLAIN, elem_id="refusal")
        with gr.Row(equal_height=True, elem_id="asking"):
            prompt = gr.Textbox(
                value=next(iter(offered.examples), ""), label="Prompt", lines=1, max_lines=4, scale=6, elem_id="prompt"
            )
            seed = gr.Number(value=7, label="Seed", scale=1, min_width=90, elem_id="seed")
            draw = gr.Button("Draw", variant="primary", scale=1, min_width=90, elem_id="draw")
            stop = gr.Button("Stop", scale=1, min_width=70, elem_id="stop")
        if len(offered.examples) > 1:
            gr.Examples([[text] for text in offered.examples], [prompt], label="Prompts to try", elem_id="examples")
        way = gr.Radio(_ways(start), value=ways.WHOLE, label="Adapters of the student", elem_id="way")
        way.visible = start.bundle is not None
        stage = gr.HTML(markup.stage(Sight(choice=start)), **PLAIN, elem_id="stage")
        gr.HTML(f'<p class="g-note">{texts.HOW_TIMED}</p>', **PLAIN)
        with gr.Tabs():
            with gr.Tab("Noise levels"):
                strip = gr.HTML(markup.strip(Sight(choice=start)), **PLAIN, elem_id="strip")
                with gr.Row(equal_height=True):
                    level = gr.Slider(
                        0, top, value=top, step=1, label=_level_label(start), buttons=[], scale=3, elem_id="level"
                    )
                    kind = gr.Radio(
                        [(title, name) for name, title in markup.KINDS.items()],
                        value="estimate",
                        label="Show",
                        scale=1,
                        min_width=320,
                        elem_id="kind",
                    )
                gr.HTML(f'<p class="g-note">{texts.HOW_SHOWN}</p>', **PLAIN)
            with gr.Tab("Seeds"):
                with gr.Row(equal_height=True):
                    count = gr.Slider(
                        *asking.SEEDS, value=6, step=1, label="Pictures in a row", buttons=[], scale=4, elem_id="count"
                    )
                    draw_seeds = gr.Button("Draw seeds", scale=1, min_width=130, elem_id="draw-seeds")
                rows = gr.HTML(markup.seeds(None), **PLAIN, elem_id="rows")
                gr.HTML(f'<p class="g-note">{texts.HOW_DIVERSE}</p>', **PLAIN)
            with gr.Tab("Pair"):
                with gr.Row(equal_height=True):
                    name = gr.Dropdown(
                        _names(offered),
                        value=start.name or None,
                        label="Bundle: a folder, or a registered version",
                        allow_custom_value=True,
                        scale=4,
                        elem_id="bundle",
                    )
                    use = gr.Button("Use it", scale=1, min_width=100, elem_id="use")
                    renew = gr.Button("Look again", scale=1, min_width=110, elem_id="renew")
                facts = gr.HTML(_facts(offered, start), **PLAIN, elem_id="facts")

        nothing = {refusal: gr.skip()}  # ends a generator: Gradio shows its last report twice, the second time too late

        def drawn(wanted: str, number: float, chosen: str, view: Sight, again: bool, request: gr.Request) -> Iterator:
            visitor = request.session_hash or ""
            drawing, first = visits.begin(visitor), True
            try:
                asked = asking.check(wanted, number)
                for now in race(studio, view, asked, chosen, drawing, again=again):
                    if not visits.current(visitor, drawing):
                        break
                    shown = seen(now)
                    yield shown if first else {part: shown[part] for part in (sight, stage, strip)}
                    first = False
                yield nothing
            except faults.SAID as error:
                yield {refusal: markup.error(faults.sentence(error))}
            finally:
                drawing.set()

        def seen(view: Sight) -> dict[Any, Any]:
            return {
                refusal: "",
                sight: view,
                stage: markup.stage(view),
                strip: markup.strip(view),
                level: gr.Slider(value=len(view.choice.levels)),
                kind: "estimate",
            }

        def press(wanted: str, number: float, chosen: str, view: Sight, request: gr.Request) -> Iterator:
            yield from drawn(wanted, number, chosen, view, True, request)

        def switch(wanted: str, number: float, chosen: str, view: Sight, request: gr.Request) -> Iterator:
            if view.asked is None:
                yield {refusal: ""}
            else:
                yield from drawn(view.asked.prompt, view.asked.seed, chosen, view, False, request)

        def move(at: float, shown: str, view: Sight) -> dict[Any, Any]:
            return {stage: markup.stage(view, int(at), shown), strip: markup.strip(view, int(at), shown)}

        def many(
            wanted: str, number: float, chosen: str, how_many: float, view: Sight, request: gr.Request
        ) -> Iterator:
            visitor = request.session_hash or ""
            drawing: Event = visits.begin(visitor)
            try:
                asked = asking.check(wanted, number, asking.check_count(how_many))
                yield {refusal: ""}
                for shown in gallery(studio, view.choice, asked, chosen, int(how_many), drawing):
                    if not visits.current(visitor, drawing):
                        break
                    yield {rows: markup.seeds(shown)}
                yield nothing
            except faults.SAID as error:
                yield {refusal: markup.error(faults.sentence(error))}
            finally:
                drawing.set()

        def choose(wanted: str | None, view: Sight, request: gr.Request) -> dict[Any, Any]:
            visits.stop(request.session_hash or "")
            try:
                if not wanted or not wanted.strip():
                    raise ValueError("the bundle must be a folder or models:/name@alias, got none")
                chosen = studio.load(offered.find(wanted.strip()), wanted.strip())
                found = _facts(offered, chosen)
            except faults.SAID as error:
                return {refusal: markup.error(faults.sentence(error))}
            fresh, last = Sight(choice=chosen), len(chosen.levels)
            return seen(fresh) | {
                heading: markup.head(chosen),
                facts: found,
                rows: markup.seeds(None),
                way: gr.Radio(_ways(chosen), value=ways.WHOLE, visible=True),
                level: gr.Slider(0, last, value=last, label=_level_label(chosen)),
            }

        def look() -> dict[Any, Any]:
            try:
                return {refusal: "", name: gr.Dropdown(choices=_names(offered))}
            except faults.SAID as error:
                return {refusal: markup.error(faults.sentence(error))}

        def end(request: gr.Request) -> None:
            visits.stop(request.session_hash or "")

        def leave(request: gr.Request) -> None:
            visits.leave(request.session_hash or "")

        pictures = [refusal, sight, stage, strip, level, kind]
        asked_for = [prompt, seed, way, sight]
        how = {"show_progress": "hidden", "concurrency_limit": VISITORS}
        gr.on([draw.click, prompt.submit], press, asked_for, pictures, trigger_mode="multiple", **how)
        way.input(switch, asked_for, pictures, trigger_mode="multiple", **how)
        draw_seeds.click(many, [prompt, seed, way, count, sight], [refusal, rows], trigger_mode="multiple", **how)
        gr.on([level.input, kind.input], move, [level, kind, sight], [stage, strip], trigger_mode="always_last", **how)
        stop.click(end, None, None, queue=False)
        use.click(choose, [name, sight], [*pictures, heading, facts, rows, way], **how)
        renew.click(look, None, [refusal, name], **how)
        blocks.unload(leave)
    return blocks


def _ways(choice: Choice) -> list[tuple[str, str]]:
    return [(way.title, way.name) for way in ways.ways(tuple(dict.fromkeys(phases(choice))) or ways.PHASES)]


def _level_label(choice: Choice) -> str:
    if choice.bundle is None or len(choice.bundle.phases) < 2:
        return "Noise level, from noise to picture"
    handoffs = [f"{phase.sigmas[0]:.3f}" for phase in choice.bundle.phases[1:]]
    return f"Noise level, from noise to picture; handoff at sigma {', '.join(handoffs)}"


def _names(offered: Offered) -> list[tuple[str, str]]:
    """The choices of bundles: the one that the page opened with, and the registry's."""
    own = [(offered.choice.name, offered.choice.name)] if offered.choice.name else []
    found = versions.offers(offered.model) if offered.model else []
    return [*own, *((f"{one.title} ({one.reference})", one.reference) for one in found)]


def _facts(offered: Offered, choice: Choice) -> str:
    retention = measured.retention(choice.digest, offered.model) if choice.bundle is not None else None
    return markup.facts(contract.rows(choice, retention))
