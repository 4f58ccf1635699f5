"""Load networks from files: this project's checkpoints, and those of LAD, CIRKD, MMSegmentation and other libraries."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.architectures import build_model
from models.backbones import narrow_stem
from models.checkpoints import reading
from models.checkpoints.card import SINGLE_LOGIT, Card, read_card
from models.checkpoints.formats import FORMATS, MMSEG, unwrap
from models.checkpoints.mmseg_meta import MmsegRecord, read_mmseg_record
from models.checkpoints.recognition import CLASSIFIER, OPTIONAL, recognise_network
from models.checkpoints.smp_files import SOURCE as SMP_SOURCE
from models.checkpoints.smp_files import is_smp, recognise_smp
from models.label_noise import LabelNoise, list_fitting_codes
from models.prediction import ImageLike, Predictor, read_rgb
from models.segmentor import Segmentor
from models.user_networks import build_user_network, is_user_network
from utils import checkpoint
from utils.errors import UserError, print_note
from utils.pixels import CONVENTIONS, PixelConvention
from utils.user_code import is_user_name

# the label noise with which LAD trained its teachers (train_baseline.py:387-417); its files do not say it
RELEASE_NOISE = {"codes": "random", "pixel_std": 0.03, "scale": CONVENTIONS["bgr_mean"].label_scale}
NO_OPTIONS = "a plain state dict does not say the options of its decoder and encoder"  # of segmentation_models_pytorch
# what build_model raises for arguments of wrong kinds or out of range
ARGUMENT_FAILURES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class LoadedNetwork(NamedTuple):
    """Hold a network from a file, and what the file says about it.

    ``predict`` takes an image and returns its classes. ``model(x)`` takes normalised input and returns an ``Output`` at
    the head's resolution.
    """

    model: Segmentor
    card: Card

    @property
    def convention(self) -> PixelConvention:
        """Return how the network's images are normalised."""
        return CONVENTIONS[self.card.pixels]

    def build_label_noise(self) -> LabelNoise | None:
        """Build the label noise of an assisted teacher. Return None for a network that sees the image only.

        Raises:
            UserError: the card's label codes make more or fewer planes than the network reads.
        """
        if not self.card.reads_label:
            return None
        config = self.card.label_noise
        classes = self.card.num_classes
        noise = LabelNoise(classes, **config)
        expected_planes = self.model.config["in_channels"] - 3
        if noise.planes != expected_planes:
            fitting = list_fitting_codes(classes, expected_planes)
            problem = (
                f"label codes {config['codes']!r} make {noise.planes} planes, this teacher reads {expected_planes}"
            )
            raise UserError(f"{problem}: --label-codes {' or '.join(fitting) or '(none fits)'}")
        return noise

    def with_label_noise(self, **changes: Any) -> "LoadedNetwork":
        """Return the same assisted teacher with another label noise.

        changes: arguments of ``LabelNoise``; those that are left out or None stay as they are.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        card = replace(self.card, label_noise={**self.card.label_noise, **given})
        return self._replace(card=card)

    def predict(
        self, image: ImageLike, probabilities: bool = False, resize: tuple[int, int] | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict the class of each pixel: uint8 ``[H, W]``, at the image's size. The model's device is used.

        image: as in ``read_rgb``. probabilities: also return the probability of each class, float32 ``[K, H, W]``.
        resize: long and short side that the image is resized to fit first, as by ``eval.py --resize``.

        Raises:
            UserError: the image cannot be read, or the network reads the label.
        """
        if self.card.reads_label:
            raise UserError("a label-assisted teacher cannot predict from an image alone: use a student")
        pixels = torch.from_numpy(read_rgb(image).transpose(2, 0, 1).copy())[None]
        pixels = pixels.to(next(self.model.parameters()).device)
        predictor = Predictor(self.model, self.convention, resize=resize)
        if not probabilities:
            classes = predictor.predict_classes(pixels)[0]
            return classes.to(torch.uint8).cpu().numpy()
        shares = predictor(pixels)[0].softmax(0)
        return shares.argmax(0).to(torch.uint8).cpu().numpy(), shares.cpu().numpy()


def from_checkpoint(
    path: str | Path, assisted: bool = False, backbone: str = "", model: str = "", model_flag: str = "--model"
) -> LoadedNetwork:
    """Load the network of a checkpoint, to the CPU and in eval mode.

    assisted: load another project's file of four input channels as a teacher that reads the label. By default such a
        the label plane is removed and the network has three channels. The output stays the same, because the LAD
        release always shows zeros to its students. This project's own files say what they are.

    backbone: the encoder of a file of segmentation_models_pytorch, if its keys do not tell it.

    model: the user's function ``package.module:function`` that builds the network, for a file that names one. It is
        imported because the caller names it. A name in a file alone is never imported.

    model_flag: the flag that ``model`` comes from, for messages.

    Raises:
        UserError: the file is missing, damaged or unknown, its weights do not fit, or ``model`` is not the function
            that it names.
    """
    content = reading.read_weight_file(path)
    _require_same_network(_get_network_name(content), path, model, model_flag)
    if _is_own_file(content):
        return _load_own_file(content, path, model_flag)
    return _load_foreign_file(content, str(path), assisted, backbone)


def load_one_of_several(path: str | Path, assisted: bool = False, model: str = "") -> LoadedNetwork:
    """Load one of several files that a command is given together.

    assisted: as in ``from_checkpoint``. model: the user's function of those files that name one; the others are loaded
    without it.

    Raises:
        UserError: the file is missing, damaged or unknown, its weights do not fit, or ``model`` is not the function
            that it names.
    """
    needs_function = is_user_network(read_network_name(path))
    return from_checkpoint(path, assisted, model=model if needs_function else "")


def read_network_name(path: str | Path) -> str:
    """Return the architecture that a checkpoint of this project names, or "" for another project's file.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _get_network_name(reading.read_weight_file(path))


def _is_own_file(content: Mapping[str, Any]) -> bool:
    """Return whether a file is this project's. Training files of others may have an entry "arch", too."""
    return "arch" in content and ("format" in content or isinstance(content["arch"], Mapping))


def _get_network_name(content: Mapping[str, Any]) -> str:
    """Return the architecture that the content of a file names, or "" if it names none."""
    arch = content.get("arch")
    if not _is_own_file(content) or not isinstance(arch, Mapping):
        return ""
    name = arch.get("arch")
    return name if isinstance(name, str) else ""


def _require_same_network(held: str, path: str | Path, model: str, flag: str) -> None:
    """Check that the caller names the user's function that a file was made with, and none for any other file.

    held: the architecture that the file names.

    Raises:
        UserError: the caller names no function, another function, or one that the file does not need.
    """
    if held == model or not (model or is_user_network(held)):
        return
    if not is_user_network(held):
        kind = held or "another project's network"
        raise UserError(f"{flag} {model}: {path} holds {kind}, which this project builds itself: leave {flag} out")
    if not is_user_name(held):
        raise UserError(f"{path} is damaged: its network is {held[:60]!r}")
    if not model:
        reason = "code that a file names is imported only when you name it, too"
        raise UserError(f"{path} holds a network from outside this project: give {flag} {held} ({reason})")
    advice = f"give {flag} {held}; a function that has moved must stay importable under this name"
    raise UserError(f"{flag} {model}: {path} holds another network: {advice}")


def _load_own_file(content: dict[str, Any], path: str | Path, model_flag: str) -> LoadedNetwork:
    """Load a checkpoint of this project.

    content: of the file ``path``. model_flag: the flag that names a user's function, for messages.

    Raises:
        UserError: the checkpoint is of another version or incomplete, its network cannot be built, or its weights do
            not fit.
    """
    card = read_card(content, path)
    try:
        if is_user_network(card.arch.get("arch")):
            model = build_user_network(**card.arch, flag=model_flag)
        else:
            model = build_model(**card.arch)
    except ARGUMENT_FAILURES as error:
        raise UserError(f"{path} does not say which network it holds: {error}") from error
    checkpoint.load_weights(model, content["model"], path)
    return LoadedNetwork(model.eval(), card)


def _load_foreign_file(content: Mapping[str, Any], source: str, assisted: bool, backbone: str) -> LoadedNetwork:
    """Load another project's file.

    content: of the file. source: the file, for messages. assisted, backbone: the arguments of ``from_checkpoint``.

    Raises:
        UserError: the format or the network is unknown, or the weights do not fit.
    """
    weights = unwrap(content, source)
    smp_config = content.get(reading.SMP_ENTRY)
    if is_smp(weights, smp_config):
        return _load_smp(weights, smp_config, source, backbone)
    if CLASSIFIER in weights:
        raise UserError(f"{source} holds bare weights of this project; use the whole checkpoint (last.pth, best.pth)")
    network = recognise_network(weights, source)
    config = network.config
    family = FORMATS[network.format].family
    record = MmsegRecord(align_corners=False, class_names=[], palette=[])
    if family is MMSEG:
        record = read_mmseg_record(content, config, source)
    if record.align_corners:
        config["align_corners"] = True
    model = build_model(**config)
    _load_complete(model, network.weights, source)
    if config["in_channels"] == 4 and not assisted:
        narrow_stem(model.backbone)
        model.config["in_channels"] = 3
    card = Card(
        dict(model.config),
        record.class_names,
        record.palette,
        pixels=family.pixels,
        label_noise=RELEASE_NOISE if model.config["in_channels"] == 4 else None,
        source=network.format,
        training={SINGLE_LOGIT: True} if network.has_single_logit else {},
    )
    return LoadedNetwork(model.eval(), card)


def _load_complete(model: Segmentor, weights: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of another project's file. Counters and constants may be missing from them.

    Raises:
        UserError: the weights do not fit.
    """
    complete = dict(weights)
    for key, value in model.state_dict().items():
        if key.endswith(OPTIONAL):
            complete.setdefault(key, value)
    checkpoint.load_weights(model, complete, f"{source}, as {model.config['arch']} on {model.config['backbone']},")


def _load_smp(
    weights: Mapping[str, Tensor], saved: Mapping[str, Any] | None, source: str, backbone: str
) -> LoadedNetwork:
    """Load a network of segmentation_models_pytorch. Print what is assumed because its files do not say it.

    weights, saved, source, backbone: the arguments of ``recognise_smp``.

    Raises:
        UserError: decoder, encoder or a setting of the network is unknown, or the weights do not fit.
    """
    network = recognise_smp(weights, saved, source, backbone)
    model = build_model(**network.config)
    try:
        _load_complete(model, network.weights, source)
    except checkpoint.DoesNotFit as error:
        if saved:
            raise
        other = f"--backbone {backbone} may be another encoder than the file's; or " if backbone else ""
        raise UserError(f"{error}; {other}{NO_OPTIONS}, which model.save_pretrained writes: save it so") from error
    print_note(f"{source}: {SMP_SOURCE}; its images are taken to be normalised as {network.pixels!r}")
    if not saved:
        print_note(f"{source}: {NO_OPTIONS}; they are taken to be the library's own")
    card = Card(
        dict(model.config),
        pixels=network.pixels,
        source=SMP_SOURCE,
        training={SINGLE_LOGIT: True} if network.has_single_logit else {},
    )
    return LoadedNetwork(model.eval(), card)
