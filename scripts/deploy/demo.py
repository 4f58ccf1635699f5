"""Open a page in the browser: segment photographs, and look into a label-assisted teacher.

    pip install -r requirements-demo.txt
    python scripts/deploy/demo.py                                        # the networks that come along
    python scripts/deploy/demo.py --pretrained runs/student/best.pth runs/baseline/best.pth
    python scripts/deploy/demo.py --pretrained runs/a/baseline/last.pth --teacher runs/a/teacher/last.pth

The first tab colours an image that is uploaded, with any of the image-only networks of --pretrained. The second tab
shows an image of a data set to a teacher, with the label planes that are chosen: its own, none, wrong ones. The page is
served to this machine only (127.0.0.1); nothing is sent elsewhere, and no file but those uploaded can be read by it.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
import torch

from datasets import build_dataset_for_network
from datasets.base import SegmentationDataset
from datasets.network_classes import require_classes
from engine.metrics import Metrics, count_confusions
from models.checkpoints.loading import LoadedNetwork, load_one_of_several
from models.label_noise import LabelNoise, list_fitting_codes
from models.prediction import Predictor
from scripts.deploy.predict import get_class_appearance, segment
from scripts.study.analysis.robustness import corrupt_label
from utils.colors import blend_classes, choose_strongest_plane, colorize, format_hex, paint_diverging
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags
from utils.pictures import read_image
from utils.seeding import RowGenerator, derive_seed
from utils.types import IGNORE_INDEX, Rgb

# what a label plane can be made of
OWN_LABEL = "the image's own label"
NO_LABEL = "no label: a plane of zeros"
WRONG_LABEL = "a wrong class in every region"
OTHER_LABEL = "the label of the next image"
SHOWN_LABELS = (OWN_LABEL, NO_LABEL, WRONG_LABEL, OTHER_LABEL)
DEFAULT_CODE_STD = 0.1  # strength of the codes "near" on the page, if the teacher was trained on codes of another kind


@dataclass(frozen=True)
class DemoConfig:
    """Hold the settings of demo.py."""

    pretrained: tuple[str, ...] = option(
        ("camvid_fpn",), "checkpoints of image-only networks; the first stands beside the teacher"
    )
    teacher: str = option("", "checkpoint of a label-assisted teacher, for the second tab")
    model: str = option("", "package.module:function, where they hold a network of your own")
    dataset: str = option("", "data set of the second tab (default: the teacher's)")
    data: str = option("", "root folder of the data set (default: the teacher's)")
    split: str = option("val", "part of the data set")
    port: int = option(7860, "port of the page on this machine", minimum=1, maximum=65535)


class SegmentTab:
    """Segment images with one of several networks."""

    def __init__(self, files: Sequence[str], model: str = "") -> None:
        """Load the networks.

        files: their checkpoints. model: package.module:function that builds the networks that are the user's own.

        Raises:
            UserError: no file is given, a file is given twice or cannot be read, or a network reads the label.
        """
        if not files:
            raise UserError("--pretrained FILE.. is missing: checkpoints of image-only networks")
        if len(set(files)) < len(files):
            raise UserError("--pretrained: the same file twice")
        self.networks = {file: load_one_of_several(file, model=model) for file in files}
        for file, loaded in self.networks.items():
            if loaded.card.reads_label:
                raise UserError(f"--pretrained {file} is a label-assisted teacher: give it to --teacher")

    def segment_upload(self, file: str, image: str | None, long_side: float) -> tuple[np.ndarray, str, str]:
        """Segment an image.

        file: a key of ``networks``. image: the path of the uploaded file, or None. long_side: the image is resized
        until its long side has this many pixels, before the network sees it; 0 leaves it as it is. Returns the image
        blended with the colours of its classes, uint8 ``[H, W, 3]``, the legend as HTML, and a text on size and time.

        Raises:
            UserError: no image is uploaded, or the image cannot be read or does not fit in memory.
        """
        if image is None:
            raise UserError("upload an image first")
        loaded = self.networks[file]
        pixels = read_image(Path(image), behind="white")
        height, width = pixels.shape[:2]
        resize = None
        if long_side:
            short_side = max(1, round(long_side * min(height, width) / max(height, width)))
            resize = (round(long_side), short_side)
        began = time.perf_counter()
        predict = Predictor(loaded.model, loaded.convention, resize=resize)
        ids = segment(Path(image), pixels, predict, torch.device("cpu"))
        seconds = time.perf_counter() - began
        names, palette = get_class_appearance(loaded.card)
        shares = np.bincount(ids.ravel(), minlength=len(names)) / ids.size
        text = f"{width}x{height} pixels in {seconds:.2f} s on the CPU (threads: {torch.get_num_threads()})"
        return np.asarray(blend_classes(pixels, ids, palette)), make_legend(names, palette, shares), text


def make_legend(names: Sequence[str], palette: Sequence[Rgb], shares: np.ndarray) -> str:
    """Return an HTML table of the classes in an image, the largest first: colour, name, share of the pixels.

    shares: the share of the pixels that each class has, 0 to 1, ``[K]``.
    """
    rows = []
    for k in np.argsort(-shares, kind="stable"):
        if shares[k] > 0:
            style = f"display:inline-block;width:1em;height:1em;background:{format_hex(palette[k])}"
            square = f'<span style="{style}"></span>'
            rows.append(f"<tr><td>{square}</td><td>{escape(names[k])}</td><td>{100 * shares[k]:.1f} %</td></tr>")
    return f"<table>{''.join(rows)}</table>"


class TeacherView(NamedTuple):
    """Hold what the second tab shows of one image: pictures ``[H, W, 3]``, uint8, and a text in Markdown."""

    image: np.ndarray
    label: np.ndarray
    plane: np.ndarray
    teacher: np.ndarray
    plain: np.ndarray
    text: str


class TeacherTab:
    """Show a teacher images with label planes of all kinds, beside a network that sees the image only."""

    def __init__(self, teacher: LoadedNetwork, plain: LoadedNetwork, dataset: SegmentationDataset) -> None:
        self.teacher = teacher
        self.trained_noise = teacher.build_label_noise()
        self.plain = plain
        self.dataset = dataset

    def ask(self, index: float, shown: str, codes: str, code_std: float, pixel_std: float) -> TeacherView:
        """Ask both networks about an image.

        index: the number of the image in the data set. shown: what the label plane is made of, one of SHOWN_LABELS.
        codes, code_std, pixel_std: the arguments of ``LabelNoise`` that have these names.

        Raises:
            UserError: the image or its label cannot be read.
        """
        index = min(int(index), len(self.dataset) - 1)  # a slider has two ends, a data set may have one image
        image, label = self.read(index)
        generator = RowGenerator(derive_seed(0, index))
        given = self.make_shown_label(index, label, shown)
        noise = self.make_noise(shown, codes, code_std, pixel_std)
        plane = noise(torch.from_numpy(given)[None], generator)[0].numpy()
        by_teacher = self.predict(self.teacher, image, given, noise, generator)
        by_plain = self.predict(self.plain, image, label, None, generator)
        palette = self.dataset.spec.palette
        return TeacherView(
            image=image.permute(1, 2, 0).numpy(),
            label=colorize(label, palette),
            plane=paint_diverging(choose_strongest_plane(plane)),
            teacher=colorize(by_teacher, palette),
            plain=colorize(by_plain, palette),
            text=self.describe(label, given, by_teacher, by_plain, shown),
        )

    def read(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return an image, uint8 ``[3, H, W]``, and its label, uint8 ``[H, W]``.

        Raises:
            UserError: the image or its label cannot be read.
        """
        image, label = self.dataset.load_sample(index)
        return image, label.numpy()

    def make_shown_label(self, index: int, label: np.ndarray, shown: str) -> np.ndarray:
        """Return the label that the teacher's plane is made of, uint8 ``[H, W]``.

        index: the number of the image. label: its own label. shown: one of SHOWN_LABELS.

        Raises:
            UserError: the label of the next image cannot be read.
        """
        if shown == WRONG_LABEL:
            rng = np.random.default_rng(index)
            return corrupt_label(label, "wrong regions", 1.0, self.teacher.card.num_classes, rng)
        if shown == OTHER_LABEL:
            other = self.read((index + 1) % len(self.dataset))[1]
            resized = torch.from_numpy(other)[None, None].float()
            return torch.nn.functional.interpolate(resized, label.shape, mode="nearest")[0, 0].byte().numpy()
        return label

    def make_noise(self, shown: str, codes: str, code_std: float, pixel_std: float) -> LabelNoise:
        """Return the label noise that the page's settings ask for. With NO_LABEL its planes are zero."""
        scale = 0.0 if shown == NO_LABEL else self.trained_noise.scale
        return LabelNoise(self.teacher.card.num_classes, codes, pixel_std, scale, code_std)

    def predict(
        self,
        loaded: LoadedNetwork,
        image: torch.Tensor,
        label: np.ndarray,
        noise: LabelNoise | None,
        generator: RowGenerator,
    ) -> np.ndarray:
        """Return the class of every pixel, uint8 ``[H, W]``.

        image: uint8 ``[3, H, W]``. label: uint8 ``[H, W]``, for the label planes. noise: what makes the label planes;
        None for a network that sees the image only.
        """
        predictor = Predictor(loaded.model, loaded.convention, noise)
        return predictor.predict_classes(image[None], torch.from_numpy(label)[None], [generator])[0].byte().numpy()

    def describe(
        self, label: np.ndarray, given: np.ndarray, by_teacher: np.ndarray, by_plain: np.ndarray, shown: str
    ) -> str:
        """Say how well both networks do, and how often the teacher repeats a wrong label.

        label: the image's own label. given: the label that the teacher was shown. by_teacher, by_plain: the classes
        that the networks predict. All are uint8 ``[H, W]``. shown: one of SHOWN_LABELS.
        """
        scores = {"teacher": by_teacher, "network without a label": by_plain}
        lines = [f"- {name}: {100 * self.score(classes, label):.1f} % mIoU" for name, classes in scores.items()]
        wrong = (given != label) & (label != IGNORE_INDEX) & (given != IGNORE_INDEX)
        if shown in (WRONG_LABEL, OTHER_LABEL) and wrong.any():
            followed = (by_teacher == given)[wrong].mean()
            truthful = (by_teacher == label)[wrong].mean()
            lines.append(
                f"- where the label shown is wrong, the teacher repeats it in {100 * followed:.1f} % of the pixels "
                f"and answers what is true in {100 * truthful:.1f} %"
            )
        return "\n".join(lines)

    def score(self, classes: np.ndarray, label: np.ndarray) -> float:
        """Return the mIoU of one image, 0 to 1."""
        count = self.teacher.card.num_classes
        confusion = count_confusions(torch.from_numpy(classes), torch.from_numpy(label), count)
        return Metrics(confusion.numpy(), 1).miou()


def load_teacher_tab(config: DemoConfig, plain: LoadedNetwork) -> TeacherTab | None:
    """Load the teacher and its data set, or return None where no teacher is given.

    plain: the network without a label that is shown beside the teacher.

    Raises:
        UserError: the teacher sees no label, the data set is not there, or a network has other classes than it.
    """
    if not config.teacher:
        return None
    teacher = load_one_of_several(config.teacher, assisted=True, model=config.model)
    if not teacher.card.reads_label:
        raise UserError(f"--teacher {config.teacher} sees the image only: give it to --pretrained")
    name, dataset = build_dataset_for_network(
        teacher.card,
        dataset=config.dataset or teacher.card.dataset,
        data=config.data or teacher.card.data,
        split=config.split,
        source=f"--teacher {config.teacher}",
    )
    source = f"the first network of --pretrained, {config.pretrained[0]}, is compared with the teacher. It"
    require_classes(plain.card, dataset.spec, name, source)
    return TeacherTab(teacher, plain, dataset)


def build_page(segment_tab: SegmentTab, teacher_tab: TeacherTab | None) -> Any:
    """Return the page, a ``gradio.Blocks``."""
    import gradio as gr

    def show_error(function: Any) -> Any:
        """Wrap a function so that the page shows a UserError's text, in place of a traceback in the terminal."""

        def call(*args: Any) -> Any:
            try:
                return function(*args)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    with gr.Blocks(title="Label Assisted Distillation", analytics_enabled=False) as page:
        gr.Markdown("# Label Assisted Distillation")
        with gr.Tab("Segment a photograph"):
            add_segment_tab(gr, segment_tab, show_error)
        with gr.Tab("Look into a teacher"):
            if teacher_tab is None:
                gr.Markdown("Start the page with `--teacher FILE`, the checkpoint of a label-assisted teacher.")
            else:
                add_teacher_tab(gr, teacher_tab, show_error)
    return page


def add_picture(gr: Any) -> Any:
    """Add a place for a picture, which is sent as PNG so that its colours stay exact."""
    return gr.Image(format="png", show_label=False, interactive=False, buttons=["download", "fullscreen"])


def add_segment_tab(gr: Any, tab: SegmentTab, show_error: Any) -> None:
    """Lay out the first tab."""
    names = list(tab.networks)
    gr.Markdown("Networks do best on images like those they were trained on, at about the same size.")
    with gr.Row():
        with gr.Column():
            image = gr.Image(type="filepath", image_mode=None, sources=["upload"], show_label=False)
            network = gr.Dropdown(names, value=names[0], label="network")
            side = gr.Slider(0, 2048, value=0, step=32, label="long side the network sees, in pixels (0: as it is)")
            button = gr.Button("Segment", variant="primary")
        with gr.Column():
            overlay = add_picture(gr)
            legend = gr.HTML()
            timing = gr.Markdown()
    button.click(show_error(tab.segment_upload), [network, image, side], [overlay, legend, timing])


def add_teacher_tab(gr: Any, tab: TeacherTab, show_error: Any) -> None:
    """Lay out the second tab."""
    kinds = list_fitting_codes(tab.teacher.card.num_classes, tab.trained_noise.planes)
    trained = tab.trained_noise.config
    kind = trained["codes"]
    pixel_noise = trained["pixel_std"]
    gr.Markdown(f"The teacher was trained with label codes `{kind}` and pixel noise {pixel_noise:g}.")
    with gr.Row():
        index = gr.Slider(0, max(1, len(tab.dataset) - 1), value=0, step=1, label="image")
        shown = gr.Dropdown(list(SHOWN_LABELS), value=OWN_LABEL, label="label plane made of")
    with gr.Row():
        codes = gr.Dropdown(kinds, value=kind, label="label codes")
        code_std = trained.get("code_std", DEFAULT_CODE_STD)
        strength = gr.Slider(0, 1, value=code_std, step=0.01, label="strength of codes 'near'")
        pixel_std = gr.Slider(0, 1, value=pixel_noise, step=0.01, label="pixel noise")
    button = gr.Button("Ask the teacher", variant="primary")
    text = gr.Markdown()
    pictures = []
    for titles in (("image", "its label", "label plane shown"), ("teacher", "network without a label")):
        with gr.Row():
            for title in titles:
                with gr.Column():
                    gr.Markdown(title)  # above the picture: gradio's own label hides a part of it
                    pictures.append(add_picture(gr))
    button.click(show_error(tab.ask), [index, shown, codes, strength, pixel_std], [*pictures, text])


def main(argv: Sequence[str] | None = None) -> None:
    config = DemoConfig(**parse_flags(DemoConfig, __doc__, argv))
    if find_spec("gradio") is None:
        raise UserError("gradio is not installed: pip install -r requirements-demo.txt")
    segment_tab = SegmentTab(config.pretrained, config.model)
    teacher_tab = load_teacher_tab(config, segment_tab.networks[config.pretrained[0]])
    page = build_page(segment_tab, teacher_tab)
    for name in ("no_proxy", "NO_PROXY"):  # gradio opens its own page to test it: not through a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    try:
        print(f"open http://127.0.0.1:{config.port} in a browser; Ctrl-C ends it", flush=True)
        page.launch(server_name="127.0.0.1", server_port=config.port, share=False, quiet=True, footer_links=[])
    except OSError as error:
        raise UserError(f"--port {config.port} cannot be used: {error}") from error


if __name__ == "__main__":
    run_main(main)
