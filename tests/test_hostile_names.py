"""Names of classes, attributes, groups and files that mean something to a page, a table or a terminal."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline import __main__ as command_line
from pipeline import escaping
from pipeline.errors import DistilleryError
from pipeline.onnx import inference
from pipeline.report import pictures, plots
from pipeline.report.card import card
from pipeline.report.page import page
from pipeline.report.results import RunResults
from pipeline.running import process
from pipeline.shipping import folder
from tests import document, hostile, results, tiny_onnx
from tests.hostile import NAMES, shown

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
ENVIRONMENT.pop("MLFLOW_TRACKING_URI", None)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
each_name = pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunResults:
    """A run that has measured everything, in which every name is hostile."""
    monkeypatch.setattr(results, "CLASSES", NAMES)
    numbers = {split: {name: 100 + k for k, name in enumerate(NAMES)} for split in ("train", "val", "test")}
    rejected = [{"source": f"{name}/x.png", "reason": f"cannot be decoded: {name}"} for name in NAMES]
    data = results.DATA | {
        "classes": list(NAMES),
        "counts": numbers,
        "rejected": rejected,
        "path": NAMES[4],
        "license": NAMES[0],
    }
    monkeypatch.setattr(results, "DATA", data)
    drawn = results.run(tmp_path / "pictures")
    names = {
        **{"red": NAMES[0], "green": NAMES[1], "blue": NAMES[2], "brightness": NAMES[3], "noise": NAMES[4]},
        **{"0.10 to 0.42": NAMES[5], "0.42 to 0.93": NAMES[6], "A <great> teacher": NAMES[7]},
        "Mean luma of the evaluated square.": NAMES[8],
    }
    run = hostile.renamed(drawn, lambda text: names.get(text, text))
    return replace(
        run, statements=dict.fromkeys(run.statements, f"{NAMES[0]} [a](javascript:alert(9)) {NAMES[13]}")
    )


@pytest.fixture
def browser_page() -> Iterator[Page]:
    """A page of a browser that runs no dialog and reports no violation of a policy."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1200, "height": 900})
        dialogs = hostile.record_dialogs(view)
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        yield view
        browser.close()
    assert dialogs == complaints == []


@each_name
@pytest.mark.parametrize(
    "frame", ["{}", "a {} b", "- {}", "# {}", "**{}**", "| {} | b |\n|---|---|\n| {} | {} |"]
)
def test_a_name_in_markdown_is_text_wherever_it_stands(name: str, frame: str) -> None:
    root = document.parse(hostile.hub(frame.replace("{}", escaping.for_markdown(name))))
    tags = {element.tag for element in root.all()} - {"html", "head", "meta", "body"}
    assert tags <= {"p", "ul", "li", "h1", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert shown(name) in root.text
    if "|" in frame:
        assert [cell.text for cell in root.all("td")] == [shown(name)] * 2
        assert len(root.all("th")) == 2


@each_name
def test_a_name_in_code_of_markdown_ends_no_code(name: str) -> None:
    texts = (name, f"```\n{name}", f"`{name}`", f"~~~ {name} ````")
    for text in texts:
        root = document.parse(hostile.hub(f"{escaping.code(text)}\n\n{escaping.code_block(text, 'yaml')}\n"))
        assert {element.tag for element in root.all()} <= {"html", "head", "meta", "body", "p", "code", "pre"}
        assert len(root.all("code")) == 2


@pytest.mark.parametrize(
    "name",
    [
        " and ",
        "T-shirt/top",
        "Ankle boot",
        "file_name",
        "Bob's",
        "Côte d'Azur (blue), 2.5 %",
        "猫",
        "C-3",
        "a + b - c",
    ],
)
def test_an_ordinary_name_is_the_same_in_every_language(name: str) -> None:
    assert escaping.for_markdown(name) == escaping.for_terminal(name) == escaping.for_csv(name) == name
    assert escaping.for_embedding(name) == escaping.visible(name) == name
    assert "&" not in escaping.for_html(name).replace("&#39;", "")


@pytest.mark.parametrize(
    "joined",
    [
        "\N{MAN}\u200d\N{PERSONAL COMPUTER}",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "e\u0301",
        "\u2764\ufe0f",
    ],
)
def test_joiners_and_combining_marks_stay(joined: str) -> None:
    assert escaping.visible(joined) == escaping.for_terminal(joined) == joined


@pytest.mark.parametrize(
    "statement",
    [
        *("[a](javascript:alert(1))", "[a]( JavaScript:alert(1) )", "![a](data:text/html,x)", "<b>a</b>"),
        *(
            "[a]: javascript:alert(1)\n\n[a]",
            "[a](java&#115;cript&colon;alert(1))",
            "[a](javascript\\:alert(1))",
        ),
        *(
            "<javascript:alert(1)>",
            "[a](<javascript:alert(1)>)",
            "[a](vbscript:x)",
            "<!-- a",
            "<script>a</script>",
        ),
    ],
)
def test_a_statement_of_the_card_runs_no_script(statement: str) -> None:
    root = document.parse(hostile.hub(escaping.prose(statement)))
    assert {element.tag for element in root.all()} <= {"html", "head", "meta", "body", "p", "a"}
    for link in root.all("a"):
        assert not re.match(r"[a-z]+:", link.attributes["href"], re.IGNORECASE)


def test_a_statement_of_the_card_may_be_markdown() -> None:
    text = "- **Faces**: see [the study](https://example.com/a?b=1&c=2), [notes](notes.md)\n- `code`"
    root = document.parse(hostile.hub(escaping.prose(text)))
    assert [link.attributes["href"] for link in root.all("a")] == [
        "https://example.com/a?b=1&c=2",
        "notes.md",
    ]
    assert (len(root.all("li")), len(root.all("strong")), len(root.all("code"))) == (2, 1, 1)


def test_the_card_shows_every_name_as_text(run: RunResults) -> None:
    text = card.render(run, run.choice.closest)
    root = document.parse(hostile.hub(text))
    assert {"script", "img", "svg", "b"} & {element.tag for element in root.all()} == set()
    assert all(link.attributes["href"].startswith("https://arxiv.org/") for link in root.all("a"))
    tables = root.all("table")
    for table in tables:
        assert {len(row.all("td")) for row in table.one("tbody").all("tr")} == {len(table.all("th"))}
    first_cells = [[row.all("td")[0].text for row in table.one("tbody").all("tr")] for table in tables]
    assert [shown(name) for name in NAMES] in first_cells
    assert len(root.all("h2")) == len(re.findall(r"^## ", text, re.MULTILINE))


def test_the_front_matter_of_the_card_is_yaml_that_no_page_runs(run: RunResults) -> None:
    text = card.render(run, run.choice.closest)
    front = text.split("\n---\n")[0].removeprefix("---\n")
    assert not re.search(r"<[a-z/!]|\]\(", front)
    assert yaml.safe_load(front) == ModelCard(text).data.to_dict()
    assert len(text.split("\n---\n")) == 2


def test_the_page_shows_every_name_as_text(run: RunResults) -> None:
    text = page.render(run)
    root = document.parse(text)
    assert len(root.all("script")) == 1
    assert not any(name.startswith("on") for element in root.all() for name in element.attributes)
    assert list(root.one(id="classes-table").cells()) == [escaping.visible(name) for name in NAMES]
    rejected = [line.text for line in root.one("section", id="data").all("li")]
    assert rejected == [shown(f"{name}/x.png: cannot be decoded: {name}") for name in NAMES]
    assert not CONTROL.search(text.replace("\n", "").replace("\t", "").replace("\r", ""))


def test_the_page_allows_nothing_but_its_own_style_and_script(run: RunResults) -> None:
    root = document.parse(page.render(run))
    content = root.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    policy = {part.split()[0]: part.split(maxsplit=1)[1] for part in content.split(";")}
    for tag in ("script", "style"):
        content = page.render(run).split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["img-src"]) == ("'none'", "data:")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_opens_the_report_and_the_card_without_a_dialog(
    run: RunResults, tmp_path: Path, browser_page: Page
) -> None:
    (tmp_path / "report.html").write_text(page.render(run))
    (tmp_path / "card.html").write_text(hostile.hub(card.render(run, run.choice.closest)))
    (tmp_path / "overview.svg").write_text(pictures.overview(run))
    for file in ("overview.svg", "card.html", "report.html"):
        browser_page.goto((tmp_path / file).as_uri())
        browser_page.wait_for_timeout(200)
    assert browser_page.evaluate("document.documentElement.scrollWidth") == 1200
    headers = browser_page.locator("#classes-table td:first-child").all_inner_texts()
    assert [" ".join(header.split()) for header in headers] == [shown(name) for name in NAMES]
    # The page's own script and styles work: the rows have shades, and pointing at a variant marks it.
    browser_page.locator(".mark[data-variant=int8]").first.focus()
    assert browser_page.locator("tr.on").get_attribute("data-variant") == "int8"
    shaded = browser_page.locator("#counts-table td[style]").first
    assert shaded.evaluate("cell => getComputedStyle(cell).backgroundColor") != "rgba(0, 0, 0, 0)"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_script_that_got_into_the_report_would_not_run(run: RunResults, tmp_path: Path) -> None:
    intruder = (
        "<img src=x onerror=alert(1)><script>alert(2)</script><a id=link href='javascript:alert(3)'>x</a>"
    )
    (tmp_path / "report.html").write_text(page.render(run).replace("<main>", f"<main>{intruder}"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        dialogs = hostile.record_dialogs(view)
        view.goto((tmp_path / "report.html").as_uri())
        view.click("#link")
        view.wait_for_timeout(300)
        browser.close()
    assert dialogs == []


def test_the_points_of_dvcs_plots_start_no_tag(run: RunResults, tmp_path: Path) -> None:
    plots.write_points(tmp_path, run)
    texts = {file.name: file.read_text() for file in tmp_path.glob("*.json")}
    # DVC writes the values into a script of its page without escaping them.
    embedded = [json.dumps(json.loads(text)) for text in texts.values()]
    decoded = [json.dumps(json.loads(text), ensure_ascii=False) for text in texts.values()]
    assert not any(re.search(r"<[A-Za-z/!?]", text) for text in (*embedded, *decoded))
    classes = dict.fromkeys(point["class"] for point in json.loads(texts["classes.json"]))
    assert [name.replace("\u200c", "") for name in classes] == [escaping.visible(name) for name in NAMES]


@each_name
def test_an_error_is_one_line_whatever_the_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), process.one_line_errors():
        raise DistilleryError(f"the class {name} is not valid", f"{name}: so is this")
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert [line[:7] for line in lines] == ["error: "] * 2
    assert not any(CONTROL.search(line) for line in lines)


def test_predict_prints_one_line_per_image_and_sends_nothing_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = np.eye(3, len(NAMES), dtype=np.float32) / 16
    model = tiny_onnx.write(tmp_path / "tiny.onnx", labels=NAMES, weights=weights)
    for number, name in enumerate(hostile.FOLDERS):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 3, 200)).save(tmp_path / "photos" / name / "\x1b[1m\n.png")
    (tmp_path / "photos" / NAMES[5] / "\x1b[2m\u202e.png").write_bytes(b"no image")
    monkeypatch.setattr("sys.argv", ["pipeline", "predict", str(model), "photos", "--top", str(len(NAMES))])
    with pytest.raises(SystemExit):
        command_line.main()
    said = capsys.readouterr()
    lines = said.out.removesuffix("\n").split("\n")
    assert len(lines) == len(hostile.FOLDERS)
    # The file has no checksum, an image could not be read, and the count.
    assert len(said.err.removesuffix("\n").split("\n")) == 3
    for line in (*lines, *said.err.split("\n")):
        assert not CONTROL.search(line)
    assert all(escaping.for_terminal(name) in line for line in lines for name in NAMES)
    # The same names are exact in JSON.
    monkeypatch.setattr("sys.argv", ["pipeline", "predict", str(model), "photos", "--top", "18", "--json"])
    with pytest.raises(SystemExit):
        command_line.main()
    answer = next(one for one in json.loads(capsys.readouterr().out) if "classes" in one)
    assert {guess["label"] for guess in answer["classes"]} == set(NAMES)


def test_the_shipped_example_sends_nothing_to_the_terminal(tmp_path: Path) -> None:
    for names in ((NAMES[2], NAMES[5], NAMES[10]), (NAMES[0], NAMES[11], NAMES[12])):
        metadata = {
            "labels": json.dumps(names),
            "input": json.dumps({"size": 8, "crop": 1.0, "interpolation": "bilinear"}),
            "task": "image-classification",
        }
        model = tiny_onnx.write(tmp_path / "tiny.onnx", labels=names, metadata=metadata)
        classifier = inference.open_classifier(model, threads=1)
        shutil.rmtree(tmp_path / "shipped", ignore_errors=True)
        folder.ship(classifier, tmp_path / "shipped", tmp_path / "absent.md")
        assert json.loads((tmp_path / "shipped" / "labels.json").read_text()) == list(names)
        photo = tmp_path / "shipped" / "\x1b[1m\u202e\n.png"
        Image.new("RGB", (8, 8)).save(photo)
        done = subprocess.run(
            [sys.executable, tmp_path / "shipped" / "predict.py", photo],
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        assert done.stdout.count("\n") == 1
        assert not CONTROL.search(done.stdout.strip().replace("\t", ""))
        for name in names:
            assert "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) in done.stdout


THIRTEEN = hostile.FOLDERS
SMALL = (
    *("data=folder", "data.train=200", "data.val=100", "data.test=100", "data.splits=new"),
    *(
        "data.train_side=null",
        "gate.distill.max_drop=1.0",
        "gate.prune.max_drop=1.0",
        "gate.quantize.max_drop=1.0",
    ),
    *("quantize.ptq=[percentile_ranges]", "quantize.float_layers=[]", "benchmark.seconds=0.2"),
)


def draw_pictures(root: Path) -> None:
    """Pictures of thirteen classes, a table of groups, and pictures of none of the classes."""
    random = np.random.default_rng(0)
    lines = [["file_name", NAMES[0], NAMES[4]]]
    for number, name in enumerate(THIRTEEN):
        folder = root / "pictures" / name
        folder.mkdir(parents=True)
        for k in range(32):
            colour = random.integers(0, 80, 3) + np.array([number * 13, number * 57 % 170, number * 91 % 170])
            pixels = (random.integers(0, 80, (48, 40, 3)) + colour).clip(0, 255).astype(np.uint8)
            file = folder / (f"{k}.png" if k else f"{NAMES[0]}\n\x1b[31m.png")
            Image.fromarray(pixels).save(file)
            lines.append([f"{name}/{file.name}", THIRTEEN[k % 4], THIRTEEN[(k + number) % 13]])
        (folder / f"broken{NAMES[0]}.png").write_bytes(b"no image")
    with (root / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    (root / NAMES[0]).mkdir()
    for k in range(4):
        pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / NAMES[0] / f"{k}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the whole pipeline has run with hostile names."""
    folder, data = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("data")
    draw_pictures(data)
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listing.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    parameters = folder / "params.yaml"
    configs = str(folder / "configs")
    compose_and_dump(str(parameters), configs, None, "tiny", "", [*SMALL, f"data.path={data}/pictures"])
    values = yaml.safe_load(parameters.read_text())
    values["card"] = dict.fromkeys(values["card"], f"{NAMES[0]} [a](javascript:alert(9)) {NAMES[13]}")
    values["data"]["license"] = NAMES[0]
    values["tracking"]["experiment"] = NAMES[0]
    values["evaluation"]["metadata"] = str(data / "groups.csv")
    values["probe"]["out_of_distribution"] = str(data / NAMES[0])
    parameters.write_text(yaml.safe_dump(values, sort_keys=False))
    done = subprocess.run(["dvc", "repro"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in (done.stdout, done.stderr):
        assert not re.search(r"[\x07\x9b\u202e]|\x1b\[31m", text)
    return folder


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of MLflow's server for the database of a folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
    options = ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
    with subprocess.Popen(
        [*command, *options], cwd=folder, env=ENVIRONMENT, start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except URLError:
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_thirteen_hostile_classes_through_the_whole_pipeline(finished: Path, tmp_path: Path) -> None:
    report = finished / "artifacts" / "report"
    pictures_folder = Path(os.environ.get("HOSTILE_SCREENSHOTS") or tmp_path)
    classes = json.loads((finished / "artifacts/data/report.json").read_text())["classes"]
    assert sorted(classes) == sorted(THIRTEEN)
    classifier = inference.open_classifier(finished / "artifacts/onnx/fp32.onnx", threads=1)
    assert list(classifier.labels) == classes
    front = ModelCard.load(report / "model_card.md").data.to_dict()
    assert front["model-index"][0]["results"]
    (tmp_path / "card.html").write_text(hostile.hub((report / "model_card.md").read_text()))

    command = [sys.executable, "-m", "pipeline", "ship", "fp32", "shipped"]
    subprocess.run(command, cwd=finished, env=ENVIRONMENT, check=True)
    shipped_card = (finished / "shipped" / "model_card.md").read_text()
    assert shipped_card.startswith((report / "cards" / "fp32.md").read_text())
    (tmp_path / "shipped.html").write_text(hostile.hub(shipped_card))
    assert json.loads((finished / "shipped" / "labels.json").read_text()) == classes

    violations: list[str] = []
    with mlflow_server(finished) as address, sync_playwright() as playwright:
        client = MlflowClient(f"sqlite:///{finished}/mlflow.db")
        run_id = json.loads((finished / "artifacts/tracked.json").read_text())["run_id"]
        run = client.get_run(run_id)
        experiment = f"{address}/#/experiments/{run.info.experiment_id}"
        of_run, kind = f"{experiment}/runs/{run_id}", "workflowType=machine_learning"
        variants = json.loads(run.data.tags["runs"])
        model = f"{address}/#/models/{quote(client.search_registered_models()[0].name, safe='')}"
        artifacts = ("report.html", "model_card.md", "variants.csv", "overview.svg", "choice.json")
        # What stands on a page of MLflow when it is complete.
        complete = {"mlflow_runs": str(run.info.run_name)} | {
            f"mlflow_{name}": f"report/{name}" for name in artifacts
        }
        addresses = {
            "report": (report / "report.html").as_uri(),
            "overview": (report / "overview.svg").as_uri(),
            "card": (tmp_path / "card.html").as_uri(),
            "shipped": (tmp_path / "shipped.html").as_uri(),
            "mlflow_runs": f"{experiment}/runs?{kind}",
            "mlflow_parent": f"{of_run}?{kind}",
            "mlflow_variant": f"{experiment}/runs/{variants['fp32']}?{kind}",
            **{f"mlflow_{name}": f"{of_run}/artifacts/report/{name}" for name in artifacts},
            "mlflow_model": model,
            "mlflow_version": f"{model}/versions/1",
        }
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1300, "height": 1200})
        dialogs = hostile.record_dialogs(view)
        view.on("console", lambda said: violations.append(said.text) if "Policy" in said.text else None)
        for name, place in addresses.items():
            view.goto("about:blank")
            view.goto(place)
            if name in complete:
                view.get_by_text(complete[name]).first.wait_for(timeout=120_000)
            view.wait_for_timeout(5000 if name.startswith("mlflow") else 500)
            view.screenshot(path=pictures_folder / f"{name}.png", timeout=120_000)
            if name in ("report", "card", "shipped"):
                text = " ".join(view.locator("body").inner_text().split())
                assert all(shown(of) in text for of in THIRTEEN)
        browser.close()
    assert dialogs == []
    assert violations == []


def test_a_byte_of_a_file_name_that_is_not_utf_8_is_shown() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert escaping.for_terminal(name) == escaping.for_html(name) == "caf\\xe9.png"
