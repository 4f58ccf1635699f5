"""The demo page: what its tabs compute and refuse. A slow test clicks through both tabs in a browser."""

import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints.loading import from_checkpoint
from scripts.deploy import demo
from tests.networks import write_checkpoint
from utils.errors import UserError
from utils.types import IGNORE_INDEX

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(image).save(folder / "photo.png")
    return {
        "image": str(folder / "photo.png"),
        "student": str(write_checkpoint(folder / "student/last.pth")),
        "teacher": str(write_checkpoint(folder / "teacher/last.pth", codes="random")),
    }


@pytest.fixture(scope="module")
def teacher_tab(files):
    config = demo.DemoConfig(pretrained=(files["student"],), teacher=files["teacher"])
    return demo.load_teacher_tab(config, from_checkpoint(files["student"]))


def test_an_image_is_segmented_as_by_predict(files):
    tab = demo.SegmentTab([files["student"]])
    overlay, legend, text = tab.segment_upload(files["student"], files["image"], 0)
    loaded = from_checkpoint(files["student"])
    classes = loaded.predict(files["image"])
    names, palette = demo.get_class_appearance(loaded.card)
    image = np.asarray(Image.open(files["image"]))
    assert np.array_equal(overlay, np.asarray(demo.blend_classes(image, classes, palette)))
    most = int(np.bincount(classes.ravel()).argmax())
    assert legend.index(names[most]) < len(legend) / 2 or len(np.unique(classes)) == 1
    assert f"{100 * (classes == most).mean():.1f} %" in legend
    assert text.startswith("64x48 pixels in ")


def test_an_image_is_segmented_at_the_requested_size(files):
    tab = demo.SegmentTab([files["student"]])
    overlay, _, _ = tab.segment_upload(files["student"], files["image"], 32)
    loaded = from_checkpoint(files["student"])
    classes = loaded.predict(files["image"], resize=(32, 24))
    image = np.asarray(Image.open(files["image"]))
    assert np.array_equal(
        overlay, np.asarray(demo.blend_classes(image, classes, demo.get_class_appearance(loaded.card)[1]))
    )


def test_the_legend_escapes_class_names():
    legend = demo.make_legend(["<script>", "road"], [(0, 0, 0), (255, 255, 255)], np.array([0.25, 0.75]))
    assert "<script>" not in legend
    assert legend.index("road") < legend.index("&lt;script&gt;")


def test_no_label_is_a_plane_of_zeros(teacher_tab):
    noise = teacher_tab.make_noise(demo.NO_LABEL, "random", 0.1, 0.03)
    planes = noise(torch.ones(1, 4, 4, dtype=torch.uint8), demo.RowGenerator(0))
    assert planes.abs().max() == 0
    own = teacher_tab.make_noise(demo.OWN_LABEL, "random", 0.1, 0.03)
    assert own.scale == teacher_tab.trained_noise.scale > 0


def test_labels_for_the_teacher(teacher_tab):
    label = teacher_tab.read(0)[1]
    assert teacher_tab.make_shown_label(0, label, demo.OWN_LABEL) is label
    wrong = teacher_tab.make_shown_label(0, label, demo.WRONG_LABEL)
    labelled = label != IGNORE_INDEX
    assert (wrong[labelled] != label[labelled]).all()
    assert (wrong[~labelled] == IGNORE_INDEX).all()
    # the first image follows the last
    last = len(teacher_tab.dataset) - 1
    assert np.array_equal(teacher_tab.make_shown_label(last, label, demo.OTHER_LABEL), label)


def test_the_answer_of_a_teacher(teacher_tab):
    own = teacher_tab.ask(0, demo.OWN_LABEL, "random", 0.1, 0.03)
    wrong = teacher_tab.ask(0, demo.WRONG_LABEL, "random", 0.1, 0.03)
    size = own.image.shape
    assert all(picture.shape == size and picture.dtype == np.uint8 for picture in own[:5])
    assert np.array_equal(own.plain, wrong.plain)  # computed without a label
    assert not np.array_equal(own.plane, wrong.plane)
    assert "repeats it" in wrong.text
    assert "repeats it" not in own.text


def test_bad_uploads_and_checkpoints_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="upload an image first"):
        demo.SegmentTab([files["student"]]).segment_upload(files["student"], None, 0)
    with pytest.raises(UserError, match="the same file twice"):
        demo.SegmentTab([files["student"]] * 2)
    with pytest.raises(UserError, match="give it to --teacher"):
        demo.SegmentTab([files["teacher"]])
    student = from_checkpoint(files["student"])
    with pytest.raises(UserError, match="give it to --pretrained"):
        demo.load_teacher_tab(demo.DemoConfig((files["student"],), files["student"]), student)
    config = demo.DemoConfig(("camvid_fpn",), files["teacher"])
    of_other_classes = from_checkpoint("camvid_fpn")
    with pytest.raises(UserError, match="It has 11 classes, toy 7"):
        demo.load_teacher_tab(config, of_other_classes)


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def address(files):
    """Start the script and yield the address of its page."""
    pytest.importorskip("gradio")
    port = find_free_port()
    command = [sys.executable, ROOT / "scripts/deploy/demo.py", "--port", port]
    command += ["--pretrained", files["student"], "--teacher", files["teacher"]]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1100"):
        options.add_argument(flag)
    window = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield window
    window.quit()


@pytest.mark.slow
def test_both_tabs_in_a_browser(address, browser, files):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def wait_for(condition):
        return WebDriverWait(browser, 120).until(condition)

    def click(selector, text):
        wait_for(lambda page: [b for b in page.find_elements(By.CSS_SELECTOR, selector) if b.text == text])[0].click()

    def open_page():
        try:
            browser.get(address)
            return browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        except Exception:  # the server is not there yet
            return []

    wait_for(lambda _: open_page())
    click("button", "Segment")
    wait_for(lambda page: "upload an image first" in page.page_source)
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(files["image"])
    wait_for(lambda page: len(page.find_elements(By.CSS_SELECTOR, "img[src*='photo.png']")) == 1)
    click("button", "Segment")
    wait_for(lambda page: "64x48 pixels in" in page.page_source)
    click("button[role=tab]", "Look into a teacher")
    click("button", "Ask the teacher")
    wait_for(lambda page: "network without a label: " in page.page_source)
    pictures = wait_for(lambda page: [i for i in page.find_elements(By.TAG_NAME, "img") if i.is_displayed()])
    assert len(pictures) == 5
    assert all(picture.get_property("naturalWidth") > 32 for picture in pictures)

    for file in ("/etc/passwd", ROOT / "README.md", files["student"]):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/gradio_api/file={file}")
