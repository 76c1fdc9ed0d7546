"""The report page in a real browser: on a phone and on a desktop, light and dark."""

import os
import shutil

import pytest
from report_kit import write_data, write_evaluation, write_run

from d2ext.report import load_run, make_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
VIEWS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if not CHROMIUM or sync_playwright is None:
        what = "Debian's chromium" if not CHROMIUM else "playwright of the extra 'dev'"
        reason = f"The page is not opened in a browser: install {what}."
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page about two evaluated runs, whose class and file names are hostile."""
    folder = tmp_path_factory.mktemp("page")
    data = write_data(folder / "data", prefix="<b>x$y%3c")
    runs = []
    for k in range(2):
        run = write_run(folder / f"run{k}", lr=0.1 * (k + 1), alwa=k == 1)
        write_evaluation(run, data, seed=k)
        runs.append(load_run(run, f"</script><script>alert({k})</script>"))
    path = folder / "report.html"
    path.write_text(make_page(runs, "<i>A & B</i>"), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page_file, request):
    """The page, its errors and requests, at a width and in a colour scheme."""
    width, scheme = getattr(request, "param", (1440, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.faults, page.asked = [], []
    page.on("console", lambda m: page.faults.append(m.text) if m.type != "log" else None)
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("dialog", lambda d: (page.faults.append("dialog: " + d.message), d.dismiss()))
    page.on("request", lambda r: page.asked.append(r.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    assert page.faults == []
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
    context.close()


@pytest.mark.parametrize("opened", VIEWS, indirect=True, ids=lambda view: f"{view[0]}-{view[1]}")
def test_it_fits_draws_and_loads_every_image(opened):
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert opened.evaluate(fits)
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")  # all charts at once
    opened.wait_for_timeout(200)
    assert opened.evaluate(fits)
    drawn = opened.evaluate(
        """[...document.querySelectorAll('figure canvas')].map((c) => {
          const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
          return pixels.some((v) => v);
        })"""
    )
    assert len(drawn) >= 10 and all(drawn)
    images = "[...document.images].map((i) => i.decode().then(() => i.naturalWidth))"
    assert all(opened.evaluate(f"Promise.all({images})"))
    seen = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    is_dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (seen == "rgb(255, 255, 255)") != is_dark


def test_names_stay_text(opened):
    assert opened.locator("h1").text_content() == "<i>A & B</i>"
    assert opened.locator("body script").count() == 3
    assert opened.locator("main i, main b:has-text('x$y')").count() == 0
    assert (
        "</script><script>alert(0)</script>" in opened.locator("#overview .legend").text_content()
    )
    assert "<b>x$y%3c_" in opened.locator(".tile").first.text_content()
    assert opened.locator("img[src=x]").count() == 0


def test_tables_sort_and_filter(opened):
    table = opened.locator("#classes0")
    column = lambda n: table.locator(f"tbody tr:visible td:nth-child({n})").all_text_contents()  # noqa: E731
    button = table.locator("thead th:nth-child(4) button")
    button.click()
    falling = [int(v) for v in column(4)]
    assert falling == sorted(falling, reverse=True) and len(falling) == 3
    button.press("Enter")
    assert [int(v) for v in column(4)] == falling[::-1]
    assert table.locator("th[aria-sort=ascending]").count() == 1
    opened.locator("input[data-table=classes0]").fill("cup")
    assert column(1) == ["cup"]


def test_curves_have_hover_zoom_and_a_legend_that_hides(opened):
    figure = opened.locator(".curves figure").first
    figure.scroll_into_view_if_needed()
    figure.locator("canvas").wait_for()
    over = figure.locator(".u-over")
    box = over.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert figure.locator(".u-series .u-value").nth(1).text_content() not in ("–", "--", "")
    read_x = "f => (({ min, max }) => max - min)(f.querySelector('.plot').uplot.scales.x)"
    whole = figure.evaluate(read_x)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 30, steps=4)
    opened.mouse.up()
    assert figure.evaluate(read_x) < 0.5 * whole
    over.dblclick()
    assert figure.evaluate(read_x) == pytest.approx(whole)
    label = figure.locator(".u-legend .u-series th").nth(1)
    label.focus()
    label.press("Enter")
    assert figure.locator(".u-series.u-off").count() == 1
    opened.locator(".curve-class").select_option(label="cup")
    assert opened.locator(".curves figure").count() == 3


def test_gallery_filters_and_enlarges(opened):
    tiles = opened.locator("#gallery0 .tile")
    assert tiles.count() == 8
    opened.locator(".g-kind").select_option(label="missed object")
    missed = tiles.count()
    assert 0 < missed <= 8
    assert opened.locator("#gallery0 [role=status]").text_content().startswith(f"{missed} of 8")
    assert tiles.first.locator("rect.k-missed").count() > 0
    opened.locator(".g-score").fill("0.9")  # what is found below it is missed now
    assert tiles.count() >= missed
    opened.locator(".g-reset").click()
    tiles.first.focus()
    opened.keyboard.press("Enter")
    viewer = opened.locator("#viewer")
    assert viewer.locator(".views h4").count() == 3  # the objects and two runs
    name = viewer.locator("b").text_content()
    boxes = viewer.locator("svg > rect").count()
    viewer.get_by_label("found objects").uncheck()
    assert viewer.locator("svg > rect").count() < boxes
    viewer.get_by_label("original resolution").check()
    width = viewer.locator("img").first.evaluate("i => i.clientWidth")
    assert width == 96
    viewer.locator("button", has_text="Close").focus()
    opened.keyboard.press("ArrowRight")
    assert viewer.locator("b").text_content() != name
    opened.keyboard.press("Escape")
    assert not viewer.is_visible()


def test_a_cell_of_the_confusion_matrix_leads_to_its_images(opened):
    cell = opened.locator(".cm td.cell button[title*='(not found)']").first
    cell.click()
    assert opened.locator(".g-kind").evaluate("s => s.selectedOptions[0].text") == "missed object"
    assert opened.locator("#gallery0 .tile").count() > 0
    opened.locator(".cm-norm").select_option("count")
    counts = opened.locator(".cm td.cell button").all_text_contents()
    assert all(int(text) > 0 for text in counts)


@pytest.mark.parametrize("opened", VIEWS, indirect=True, ids=lambda view: f"{view[0]}-{view[1]}")
def test_the_switch_turns_the_theme_and_the_charts(opened):
    color = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(color)
    opened.locator("#theme").click()
    assert opened.evaluate(color) != before
    opened.locator("#theme").press("Enter")
    assert opened.evaluate(color) == before


def test_it_prints(opened):
    assert opened.pdf().startswith(b"%PDF")
    opened.emulate_media(media="print", color_scheme="dark")
    assert (
        opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert not opened.locator(".controls").first.is_visible()
