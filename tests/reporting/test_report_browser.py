"""The report in a real browser: it is drawn, its controls work by keyboard, and it follows screen and colour scheme."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from yxanul.ledger.attribution import Estimate, Factor
from yxanul.ledger.runs import Moment, Run, Times
from yxanul.reporting.report_page import PageTable, Worth, report_page

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1000"
)

pytestmark = pytest.mark.skipif(
    not (BROWSER.exists() and DRIVER.exists()), reason=f"needs {BROWSER} and {DRIVER} (apt install chromium-driver)"
)

PAPER = "getComputedStyle(document.querySelector('#curves .main-svg')).backgroundColor"
WIDTHS = "[...document.querySelectorAll('.main-svg')].map((plot) => plot.getBoundingClientRect().width)"
HOSTILE = "<script>document.title=1</script>"
LONG = "model.hidden_size=192,optimizer.muon.lr=0.01,schedule.warmup=0.01,seed=1"
LENGTHS = [8, 32, 128, 512]
STEPS = 400


def run(name: str, speed: float, finished: bool = True) -> Run:
    """A run whose curves look like those of a run."""
    seconds = [(step / speed) for step in range(1, STEPS + 1)]
    quality = [1.2 + 2 * (40 / (step + 40)) / speed**0.2 for step in range(1, STEPS + 1)]
    steps = [
        {
            "step": step,
            "stage": (stage := (step - 1) ** 2 * len(LENGTHS) // STEPS**2 + 1),
            "seq_len": LENGTHS[stage - 1],
            "tokens": 1000 * step,
            "bytes": 4321 * step,
            "bits_per_byte": quality[step - 1] + 0.3 * (step * 7919 % 13 / 13 - 0.5),
            "bytes_per_second": 4321 * speed * (1 + stage / 8),
            "mfu": 0.08 * speed * (1 + stage / 8),
            "seconds": seconds[step - 1],
        }
        for step in range(1, STEPS + 1)
    ]
    training = [
        Moment(
            step=step,
            tokens=1000 * step,
            bytes=4321 * step,
            flops=2e12 * step,
            training_seconds=seconds[step - 1],
            prepared_seconds=30 + seconds[step - 1],
            total_seconds=30 + seconds[step - 1],
            device_hours=seconds[step - 1] / 3600,
            bits_per_byte=row["bits_per_byte"],
        )
        for step, row in enumerate(steps, 1)
    ]
    moments = [replace(each, bits_per_byte=quality[each.step - 1]) for each in training[39::40]]
    result = {
        "device": "NVIDIA H100 80GB HBM3",
        "versions": {"yxanul": "0.1.0", "torch": "2.13.0+cu128", "numpy": "2.4.6", "python": "3.11.7"},
        "by_position": [{"name": f"{2**k}", "tokens": 1, "bytes": 4, "bits_per_byte": 3 - 0.2 * k} for k in range(9)],
        "samples": [{"prompt": '"""Selector event loops', "text": " for Windows.\n\nimport sys\n"}],
    }
    return Run(
        name=name,
        folder=Path("run"),
        config={"optimizer": {"lr": 0.01 * speed}, "seed": 1, "name": name},
        plan={
            "stages": [{"stage": stage, "flops": 2e12, "tokens": 1000} for stage in range(1, 5)],
            "processes": 1,
        },
        result=result if finished else None,
        steps=steps,
        training=training,
        moments=moments,
        times=Times(5, 10, 15, STEPS / speed, 20),
        held_out="text",
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for option in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    header = ["run", "bits per byte", "seconds", "tokens", "training FLOPs", "device-hours to 1.5 bits per byte"]
    table = PageTable("Results", header, [[HOSTILE, "1.3456", "400", "400k", "800T", "0.111"]] * 2)
    runs = [run(LONG, 1.0), run(HOSTILE, 1.6), run("on its way", 0.7, finished=False)]
    sure, unsure = Estimate(2.0, 1.8, 2.2), Estimate(0.5, None, None)
    factors = [Factor(HOSTILE, sure, Estimate(4.0, 3.9, 4.1), unsure, 3), Factor(LONG, unsure, unsure, sure, 1)]
    whole = Factor("all of them", Estimate(1.0, None, None), unsure, sure, 1)
    worth = Worth("Times as fast", factors, cumulative=True, whole=whole)
    path.write_text(report_page(runs, [table], ["2026-11-23, NVIDIA H100"], "python -m yxanul.report runs", worth))
    return path.as_uri()


@pytest.fixture
def page(driver, address) -> Iterator:
    """The page as first seen; at the end, nothing may have gone wrong on it."""
    driver.get(address)
    WebDriverWait(driver, 20).until(lambda _: driver.find_elements(By.CSS_SELECTOR, "#times .bars path"))
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert driver.title == "Report", "no name was run"


def text(page, selector: str) -> str:
    return page.find_element(By.CSS_SELECTOR, selector).text


def evaluate(page, expression: str):
    return page.execute_script(f"return {expression}")


def wait(page, reached) -> None:
    WebDriverWait(page, 10).until(lambda _: reached())


def bands(page) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, "#curves .shapelayer path"))


def paths(page) -> list[str]:
    return evaluate(
        page, "[...document.querySelectorAll('#curves path.js-line')].map((line) => line.getAttribute('d'))"
    )


def lines(page, plot: str) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, f"#{plot} .scatterlayer .trace path.js-line"))


def test_every_plot_is_drawn(page):
    assert lines(page, "curves") == 6, "of three runs, training and evaluation"
    assert lines(page, "speed") == lines(page, "utilization") == 3
    assert len(page.find_elements(By.CSS_SELECTOR, "#times .bars .point")) == 15, "five parts of three runs"


def test_what_choices_were_worth_falls_like_water(page):
    """Each bar begins where the one before ends: twice as fast, then half as fast, and learning times throughput.

    The whole is drawn below them, from 1.
    """
    ends = "worth.data.map((bar) => bar.base.map((base, i) => base + bar.x[i]))"
    assert evaluate(page, "worth.data.map((bar) => bar.base)") == [[1, 2, 1], [4, 1, 0.5]]
    assert evaluate(page, ends) == [[4, 1, 0.5], [2, 2, 1]]
    assert evaluate(page, "worth.data[1].error_x.array") == pytest.approx([0.2, 0, 0])
    assert len(page.find_elements(By.CSS_SELECTOR, "#worth .bars .point")) == 6
    assert HOSTILE in page.find_element(By.CSS_SELECTOR, "#worth .annotation").get_attribute("textContent")


def test_the_axes_are_chosen_by_keyboard(page):
    assert text(page, "#curves .xtitle") == "seconds of training"
    chosen = page.find_element(By.ID, "axis")
    chosen.send_keys(Keys.ARROW_DOWN)
    wait(page, lambda: text(page, "#curves .xtitle") == "seconds with preparation")
    chosen.send_keys(Keys.END)
    wait(page, lambda: text(page, "#curves .xtitle") == "device-hours")
    assert lines(page, "curves") == 6
    for axis in "xy":
        page.find_element(By.ID, f"log-{axis}").send_keys(Keys.SPACE)
        wait(page, lambda axis=axis: evaluate(page, f"curves._fullLayout.{axis}axis.type") == "log")


def test_every_control_is_reached_by_keyboard_and_has_a_label(page):
    reached = []
    for _ in range(12):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(evaluate(page, "document.activeElement.id || document.activeElement.className"))
        assert evaluate(page, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[:9] == ["scroll", "run", "run", "run", "axis", "log-x", "log-y", "smoothing", "stages"]
    names = [each.accessible_name for each in page.find_elements(By.CSS_SELECTOR, "input, select")]
    assert all(names) and HOSTILE in names


def test_plotly_offers_to_zoom_and_not_to_send(page):
    offered = [each.accessible_name for each in page.find_elements(By.CSS_SELECTOR, ".modebar-btn")]
    assert "Zoom" in offered and "Reset axes" in offered
    assert not any("share" in name.lower() or "cloud" in name.lower() for name in offered)


def test_smoothing_bends_the_training_curves_alone(page):
    smoothed = page.find_element(By.ID, "smoothing")
    before = paths(page)
    smoothed.send_keys(Keys.HOME)
    wait(page, lambda: text(page, "#smoothed") == "0.00")
    after = paths(page)
    assert before[:3] != after[:3]
    assert evaluate(page, "curves.data[0].y[7]") == evaluate(page, "data.runs[0].steps.bits_per_byte[7]")
    assert evaluate(page, "curves.data[3].y") == evaluate(page, "data.runs[0].moments.bits_per_byte")


def test_a_point_tells_what_it_is(page):
    point = page.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer .trace .points path")[14]  # of the second run
    ActionChains(page).move_to_element(point).perform()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#curves .hoverlayer text"))
    told = page.find_element(By.CSS_SELECTOR, "#curves .hoverlayer").get_attribute("textContent")
    for part in (HOSTILE, "held-out", "step 200", "200,000 tokens", "864,200 bytes", "125.0 s"):
        assert part in told


def test_stages_stand_behind_the_chosen_run_or_the_only_one(page):
    assert bands(page) == 0
    Select(page.find_element(By.ID, "stages")).select_by_visible_text(LONG)
    wait(page, lambda: bands(page) == len(LENGTHS))
    assert evaluate(page, "curves.layout.shapes.map((band) => band.x1)") == [200, 283, 347, 400]
    Select(page.find_element(By.ID, "stages")).select_by_index(0)
    wait(page, lambda: bands(page) == 0)
    for box in page.find_elements(By.CSS_SELECTOR, "input.run")[1:]:
        box.send_keys(Keys.SPACE)
    wait(page, lambda: bands(page) == len(LENGTHS))
    assert lines(page, "curves") == 2 and lines(page, "speed") == 1
    page.find_element(By.ID, "log-x").send_keys(Keys.SPACE)
    wait(page, lambda: evaluate(page, "curves.layout.shapes[0].x0") == 1)


def test_no_run_need_be_shown_and_all_come_back(page):
    boxes = page.find_elements(By.CSS_SELECTOR, "input.run")
    for plots in (0, 3):
        for box in boxes:
            box.send_keys(Keys.SPACE)
        wait(page, lambda plots=plots: lines(page, "speed") == plots)
        assert lines(page, "curves") == 2 * plots


def test_a_run_that_has_just_begun_is_drawn_beside_others(page, tmp_path):
    begun = replace(run("begun", 1.0, finished=False), moments=[], steps=[], training=[])
    path = tmp_path / "begun.html"
    path.write_text(report_page([begun, run("other", 1.0)], [], [], "python"))
    page.get(path.as_uri())
    wait(page, lambda: lines(page, "curves") == 2)
    page.find_element(By.ID, "log-x").send_keys(Keys.SPACE)
    Select(page.find_element(By.ID, "stages")).select_by_visible_text("begun")
    assert bands(page) == 0


def test_nothing_is_wider_than_a_narrow_screen(page):
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wait(page, lambda: evaluate(page, "innerWidth") == 400)
        wait(page, lambda: all(width <= 400 for width in evaluate(page, WIDTHS)))
        assert evaluate(page, "document.documentElement.scrollWidth") <= 400
        assert evaluate(page, "document.querySelector('.scroll').scrollWidth") > 400, "the table scrolls in its box"
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_colours_follow_the_scheme(page):
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        wait(page, lambda: evaluate(page, PAPER) == evaluate(page, "getComputedStyle(document.body).backgroundColor"))
        colours.append(evaluate(page, PAPER))
    assert colours[0] == "rgb(255, 255, 255)" != colours[1]


def test_the_use_of_the_context_is_drawn_for_finished_runs(page):
    drawn = page.execute_script("return document.getElementById('positions').data.map((trace) => [trace.x, trace.y])")
    expected = [[2**k for k in range(9)], pytest.approx([3 - 0.2 * k for k in range(9)])]
    assert drawn == [expected, expected, [[], []]]
