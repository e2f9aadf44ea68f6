"""The page as a reader meets it: complete, self-contained, and in a real browser where there is one."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.evaluation import pictures, showing, timing
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.latency import Latency
from pipeline.evaluation.report import cells, content, figures, histories
from pipeline.evaluation.report import page as report
from pipeline.evaluation.report.content import Content
from pipeline.evaluation.report.markup import tag, text
from pipeline.evaluation.scores import scoring
from pipeline.evaluation.timing import Timing
from tests.evaluation_case import draw, make_artifacts, no_progress, read, small_params

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>document.title = JSON.stringify({
images: document.images.length,
loaded: [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.clientHeight > 0),
fits: document.documentElement.scrollWidth <= window.innerWidth,
charts: [...document.querySelectorAll('svg[role=img]')].every(s => s.getBoundingClientRect().height > 50)})</script>"""


class Page(HTMLParser):
    """Collects what a page refers to, its headings, and whether every element is closed."""

    VOID = {"meta", "img"}

    def __init__(self, markup):
        super().__init__()
        self.references, self.headings, self.images, self.open, self.scripts = [], [], [], [], 0
        self.feed(markup)

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.references += [given[key] for key in ("src", "href", "srcset", "data", "action", "poster") if key in given]
        self.scripts += name == "script"
        if name == "img":
            self.images.append(given)
        if name not in self.VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        if name in self.VOID:
            self.handle_starttag(name, attributes)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def section(page, title):
    """The markup of one section of the page."""
    return next(part for part in page.split("<section>") if part.startswith(f"<h2>{title}</h2>"))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """artifacts/evaluation of drawn images, whose scores are known, and what its report shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        patch.delenv("DVC_ROOT", raising=False)
        settings = small_params(prompts=30, batch=16, grid_prompts=4)
        make_artifacts(settings)
        given = read(settings)
        draw(given, artifacts.IMAGES)
        images = ImageSet.load(artifacts.IMAGES)
        scoring.score(settings.evaluation, images, artifacts.EVALUATION, no_progress)
        latencies = {b: {a.name: Latency(2.0 * a.nfe, 2.0 * a.nfe + 5) for a in given.arms} for b in (1, 16)}
        times = {
            "arms": {arm.name: timing.row(arm.name, latencies) for arm in given.arms},
            "latency_batches": [1, 16],
            "latency_repeats": 5,
            "timed_as": Timing(given).timed_as,
            "device": "an abacus",
            "teacher_digest": given.teacher_digest,
            "bundle_digest": given.bundle_digest,
        }
        artifacts.write_json(artifacts.LATENCY, times)
        losses = histories.read(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS)
        shown = content.gather(settings, images, artifacts.EVALUATION, losses, trained_here=True)
        report.write(shown, artifacts.EVALUATION / "report.html")
        yield artifacts.EVALUATION.resolve(), shown


def test_the_page_is_whole_and_refers_to_nothing_outside_itself(evaluation):
    folder, shown = evaluation
    metrics = shown.metrics
    markup = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(markup)
    assert page.open == [] and page.scripts == 0
    assert page.references and all(reference.startswith("data:image/") for reference in page.references)
    assert not re.search(r"url\(|@import|https?://|file:", markup)
    sections = "Side by side, Every arm, Quality over cost, Colour and detail, Speed"
    sections += ", Where the student fails, Score per task, Training, Provenance"
    assert page.headings[1:] == sections.split(", ")
    failures = min(metrics["agreement"]["teacher_only"], showing.MAX_FAILURES)
    assert failures > 0 and len(page.images) == 4 * 5 + 3 * failures
    assert all(image["alt"].endswith((", passes", ", fails")) for image in page.images)
    assert f"{100 * metrics['arms']['student']['retention']:.1f}" in markup
    assert "Swapped adapters: timed as Student, which does the same work." in markup
    assert "in one run on an abacus." in markup and f"{metrics['arms']['student']['speedup_batch1']:.1f}×" in markup
    assert metrics["bundle_digest"] in markup and metrics["teacher_digest"] in markup


def test_colour_and_detail_of_every_arm_have_a_table_of_their_own(evaluation):
    folder, shown = evaluation
    markup = (folder / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr class=.*?</tr>", section(markup, "Colour and detail"))
    assert len(rows) == len(shown.arms) and "Detail" not in section(markup, "Every arm")
    for arm, row in zip(shown.arms, rows, strict=True):
        found = shown.metrics["arms"][arm.name]
        numbers = [f"{found[key]:.2f}" for key in ("brightness_shift", "chroma_shift")]
        numbers += [f"{found[key]:.3f}" for key in ("contrast", "detail")]
        assert text(arm.title) in row and re.findall(r"<td>(.*?)</td>", row) == numbers


def test_a_browser_shows_the_page_without_sideways_scrolling(evaluation, tmp_path):
    folder, *_ = evaluation
    markup = (folder / "report.html").read_text(encoding="utf-8")
    assert 'name="viewport"' in markup and "prefers-color-scheme:dark" in markup and 'lang="en"' in markup
    if BROWSER is None:
        return  # the parser's test holds for the page's content
    (tmp_path / "probed.html").write_text(markup.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    for width in (1280, 600):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
        shown = subprocess.run(
            [BROWSER, *flags, (tmp_path / "probed.html").as_uri()], capture_output=True, text=True, timeout=120
        ).stdout
        title = re.search(r"<title>(.*?)</title>", shown).group(1).replace("&quot;", '"')
        assert '"loaded":true,"fits":true,"charts":true' in title, (width, title)


def test_a_page_without_a_checker_says_so(evaluation):
    _, shown = evaluation
    metrics = shown.metrics
    unscored = {**metrics, "unscored": "the checker is out", "agreement": None, "tasks": {"teacher": {}}}
    empty = {"score": None, "retention": None, "retention_low": None, "retention_high": None}
    unscored["arms"] = {name: {**row, **empty} for name, row in metrics["arms"].items()}
    rows = [pictures.Row(row.caption, row.images, None) for row in shown.side_by_side]
    changed = {**vars(shown), "metrics": unscored, "side_by_side": rows, "failures": []}
    page = Page(markup := report.page(Content(**changed)))
    assert "No checker score: the checker is out." in markup
    assert "Where the student fails" not in page.headings and "Score per task" not in page.headings
    assert not any(image["alt"].endswith("passes") for image in page.images)

    changed["metrics"] = {**unscored, "unscored": ""}
    assert "No retention: the teacher passes no prompt." in report.page(Content(**changed))


def test_a_grid_with_a_missing_image_is_refused():
    row = pictures.Row("a star", [np.zeros((8, 8, 3), dtype=np.uint8)], None)
    with pytest.raises(ValueError, match="every row needs 2 images, got 1 for 'a star'"):
        pictures.grid(["Teacher", "Student"], [row])


def test_large_images_are_shown_small():
    image = np.random.default_rng(0).integers(0, 256, (1024, 512, 3), dtype=np.uint8)
    assert pictures.data_uri(image).startswith("data:image/jpeg;base64,") and len(pictures.data_uri(image)) < 80_000
    assert pictures.thumbnail(image).size == (128, 256)
    grid = pictures.grid(["Teacher"], [pictures.Row("a very long caption " * 20, [image], [True])])
    assert grid.size == (148, 50 + 164)


def test_words_never_become_markup():
    assert text('<b a="1">') == "&lt;b a=&quot;1&quot;&gt;"
    assert tag("td", text("a < b"), css="x", data_row=1.25, hidden=None, open=True) == (
        '<td class="x" data-row="1.2" open>a &lt; b</td>'
    )
    assert tag("img", alt='"quoted"') == '<img alt="&quot;quoted&quot;"/>'


@pytest.mark.parametrize(
    "low, high, log, ticks",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 49, False, [0, 10, 20, 30, 40]),
        (0.9, 60, True, [1, 2, 5, 10, 20, 50]),
        (1e-4, 1e3, True, [1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1000]),
    ],
)
def test_axes_have_round_ticks(low, high, log, ticks):
    axis = figures.Axis(low, high, 0, 100, log)
    np.testing.assert_allclose(axis.ticks(), ticks)
    assert axis(low) == pytest.approx(0) and axis(high) == pytest.approx(100)


def test_numbers_are_short():
    assert [figures.number(v) for v in (0, 0.25, 1234, 1e-5, 2e6)] == ["0", "0.25", "1.23e+03", "1e-5", "2e6"]


def test_labels_keep_their_distance_within_the_chart():
    last = {"c": 0.1, "a": 0.102, "b": 0.101, "lowest": 0.001, "highest": 9.0}
    chart = figures.losses([figures.Line([(0, 1.0), (9, loss)], name, "slow") for name, loss in last.items()], "losses")
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', chart)[1])
    found = re.findall(r'<text class="mark slow" x="[\d.]+" y="([\d.]+)">(\w+)<', chart)
    places = {name: float(y) for y, name in found}
    assert sorted(places, key=places.get) == ["highest", "a", "b", "c", "lowest"]
    assert np.diff(sorted(places.values())).min() >= figures.LABEL_GAP - 0.1
    assert 0 < min(places.values()) and max(places.values()) < height


def test_a_chart_of_no_losses_is_refused():
    with pytest.raises(ValueError, match="a chart of losses needs at least one loss above 0, got none"):
        figures.losses([figures.Line([(0, 0.0)], "slow", "slow")], "losses")


@pytest.mark.parametrize("value, css", [(1.01, "good"), (0.95, "good"), (0.9, "mid"), (0.5, "bad")])
def test_retention_is_graded(value, css):
    assert cells.grade(value) == css


def test_no_label_of_quality_over_cost_covers_another():
    near = [figures.Point(x, y, f"an arm of {x} at {y}", "base") for x in (8, 10, 16) for y in (0.97, 0.98, 1.0)]
    chart = figures.over_nfe([*near, figures.Point(100, 1.0, "Teacher", "teacher")], [], "retention", "a title")
    found = re.findall(r'<text class="mark [^"]*" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)<', chart)
    boxes = []
    for x, y, anchor, words in found:
        width = figures.LETTER * len(words)
        first = float(x) - (width if anchor == "end" else 0)
        boxes.append((first, first + width, float(y)))
    assert len(boxes) == 10
    for i, (first, last, y) in enumerate(boxes):
        for other_first, other_last, other_y in boxes[:i]:
            assert last < other_first or first > other_last or abs(y - other_y) >= figures.LABEL_GAP


def test_the_teachers_own_distance_is_not_drawn(evaluation):
    _, shown = evaluation
    metrics = {**shown.metrics, "arms": {name: dict(row) for name, row in shown.metrics["arms"].items()}}
    metrics["arms"]["teacher"]["fd_scenes"] = 1e-9
    chart = section(report.page(replace(shown, metrics=metrics)), "Quality over cost").split("<figure")[-1]
    assert "fd_scenes" in chart and "1e-9" not in chart and "Teacher<" not in chart


def test_all_but_the_first_prompts_side_by_side_are_folded(evaluation):
    _, shown = evaluation
    many = replace(shown, side_by_side=[shown.side_by_side[0]] * (report.SHOWN + 2))
    open_part, folded = section(report.page(many), "Side by side").split("<details>")
    assert open_part.count("<article") == report.SHOWN and folded.count("<article") == 2
    assert "2 more prompts" in folded and "<details>" not in section(report.page(shown), "Side by side")
