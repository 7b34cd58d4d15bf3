import pytest
from folders import config_in, groups_of, write_evaluation

from g1_ray.report.write import write_report
from g1_ray.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training run with an evaluation and a lab in it."""
    config = config_in(tmp_path_factory.mktemp("runs"))
    folder = RunFolder.open(config)
    for group in groups_of(config, 8):
        folder.keep_group(group)
    for step in range(1, 41):
        names = ("reward", "p_acc", "r_acc")
        metrics = {f"{game.name}/{name}": 0.5 + step / 100 for game in config.games for name in names}
        metrics |= {"loss": -0.01 / step, "groups": 96.0, "flat_groups": float(step), "tokens_per_s": 25_000.0}
        folder.log(step, metrics | ({"moved/lab_true_perception": step / 40} if step % 10 == 0 else {}))
    folder.write_report({"issued": 8, "trained": 8, "dropped": 0, "quarantined": 0, "in_flight": 0}, 60.0)
    folder.close()
    write_evaluation(folder.path / "eval", config)
    return folder.path


@pytest.fixture(scope="module")
def page_of_run(run, tmp_path_factory):
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html", workers=1)


@pytest.fixture
def open_page(browser):
    """Opens a page; at the end of the test, nothing may have been logged as an error or asked for from outside."""
    pages, faults = [], []

    def open_(path, **options):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        pages.append(page)
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("body")
        return page

    yield open_
    for page in pages:
        page.close()
    assert not faults
