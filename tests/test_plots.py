import configparser
import itertools
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dvc.compare import show_metrics
from dvc_render import render_html
from dvc_render.vega import VegaRenderer
from playwright.sync_api import sync_playwright

from pipeline.report import plots
from tests import results

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_each_variant_has_a_file_of_single_figures(tmp_path: Path) -> None:
    table = results.run().table
    plots.write_metrics(tmp_path, table)
    for row in table:
        figures = json.loads((tmp_path / f"{row.variant}.json").read_text())
        assert figures["top1"] == pytest.approx(row.score, abs=1e-6)
        assert figures["latency_ms_p50"] == row.latency_ms_p50
        assert figures["verdict"] == row.verdict
        assert all(isinstance(value, int | float | str) for value in figures.values())
    assert len(list(tmp_path.iterdir())) == len(table)


def test_dvc_shows_the_figures_of_all_variants_on_one_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [replace(row, variant=f"a-long-name-of-{row.variant}") for row in results.run().table]
    plots.write_metrics(tmp_path, table)
    data = {
        f"artifacts/variants/{row.variant}.json": {
            "data": json.loads((tmp_path / f"{row.variant}.json").read_text())
        }
        for row in table
    }
    show_metrics({"": {"data": data}})
    header, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(table)
    assert len(header.split()) <= 8
    assert max(map(len, [header, *lines])) <= 160


def page_template() -> Path:
    config = configparser.ConfigParser()
    config.read_string(re.sub(r"(?m)^\s+", "", (ROOT / ".dvc/config").read_text()))
    return ROOT / ".dvc" / config["plots"]["html_template"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_without_a_network_the_page_of_dvc_plots_says_why_it_is_empty(tmp_path: Path) -> None:
    drawn = VegaRenderer([{"x": 1, "y": 2, "rev": "workspace"}], "points", x="x", y="y")
    page = Path(render_html([drawn], tmp_path / "index.html", html_template=page_template()))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(offline=True)
        errors: list[str] = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(page.as_uri())
        assert view.locator("#offline").is_visible()
        assert "report.html" in view.locator("#offline").inner_text()
        # With Vega there is nothing to say.
        view.add_init_script("window.vegaEmbed = () => {}")
        view.reload()
        assert not view.locator("#offline").is_visible()
        assert errors == []
        browser.close()


def test_the_page_of_dvc_plots_has_a_place_for_scripts_and_charts() -> None:
    text = page_template().read_text()
    assert text.index("{scripts}") < text.index("typeof vegaEmbed") < text.index("{plot_divs}")


def test_the_diagram_of_the_stages_is_that_of_dvc() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    for name, stage in stages.items():
        body = stage.get("do", stage)
        for out in [*body.get("outs", []), *body.get("metrics", [])]:
            outs[out if isinstance(out, str) else next(iter(out))] = name
    for name, stage in stages.items():
        deps = [re.sub(r"\$\{item.parent\}", "${key}", dep) for dep in stage.get("do", stage)["deps"]]
        needs[name] = {
            maker
            for dep in deps
            for out, maker in outs.items()
            if dep == out or out.startswith(f"{dep}/") or dep.startswith(f"{out}/")
        } - {"check"}
    [diagram] = re.findall(
        r"```mermaid\n(flowchart LR\n +prepare .*?)```", (ROOT / "docs/concepts.md").read_text(), re.S
    )
    drawn: dict[str, set[str]] = {name: set() for name in needs}
    for line in re.sub(r' -- ".*?" -->', " -->", diagram).splitlines()[1:]:
        chain = line.split(" --> ")
        for before, after in itertools.pairwise(chain):
            drawn[after.strip()].add(before.strip())
    del needs["check"], drawn["check"]
    assert everything_before(drawn) == everything_before(needs)


def everything_before(needs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Each stage with all stages that come before it."""
    reached = {name: set(direct) for name, direct in needs.items()}
    for _ in needs:
        for earlier in reached.values():
            earlier |= {before for name in earlier for before in reached[name]}
    return reached


def test_points_of_a_plot_have_the_same_keys_as_dvc_asks(tmp_path: Path) -> None:
    teacher = [{"epoch": 1, "loss": 0.5, "val_top1": 0.8, "size": 64, "kl": 0.5}]
    plots.write_points(tmp_path, replace(results.run(), teacher_history=teacher))
    drawn = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert set(drawn) == {"training", "latency", "size", "classes", "confusion"}
    for points in drawn.values():
        assert len({tuple(point) for point in points}) == 1


def test_the_parts_of_one_training_follow_each_other() -> None:
    half, whole = ({"epoch": n, "loss": 0.5, "val_top1": 0.8} for n in (0.5, 1.0))
    points = plots.training({"teacher": [half, half, whole]}, "top1")
    assert [point["epoch"] for point in points] == [0.5, 1.0, 2.0]


def test_the_front_holds_what_no_other_variant_beats() -> None:
    points = plots.tradeoff(results.run().table, "latency")
    # fp32 is as accurate as int8 and slower; pruned is as accurate as pruned-int8 and slower.
    assert {point["variant"] for point in points if point["front"]} == {"int8", "pruned-int8"}


def test_every_test_image_is_in_the_confusion_once() -> None:
    entry = results.run().variants[0]
    points = plots.confusion(entry)
    assert sum(point["images"] for point in points) == entry.scores["n"]
    right = sum(point["images"] for point in points if point["truth"] == point["answer"])
    assert right == entry.scores["correct"]
    shares = dict.fromkeys(results.CLASSES, 0.0)
    for point in points:
        shares[point["truth"]] += point["share"]
    assert list(shares.values()) == pytest.approx([1.0] * 3, abs=1e-5)
