"""Distillation losses by name: ``build_kd("cwd=3,kd=1:tau=4", ...)``. A new one is a file and a line in LOSSES."""

import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from losses.adv import Adversarial
from losses.af_dcd import AfDCD
from losses.at import AT
from losses.cirkd import CIRKD
from losses.cirkd2 import CIRKD2
from losses.cirkd_memory import CIRKDPixel, CIRKDRegion, share_projector
from losses.cwd import CWD
from losses.cwd_feat import CWDFeat
from losses.dist import DIST
from losses.dsd import DSD
from losses.fitnet import FitNet
from losses.ifvd import IFVD
from losses.kd import KD
from losses.mgd import MGD
from losses.nfd import NFD
from losses.own import load_class
from losses.skd import SKD
from utils.bilinear import resize
from utils.errors import UserError, lookup, nearest
from utils.types import Output, full_precision

LOSSES: dict[str, type[nn.Module]] = {
    "kd": KD,
    "cwd": CWD,
    "dist": DIST,
    "at": AT,
    "fitnet": FitNet,
    "nfd": NFD,
    "cwd_feat": CWDFeat,
    "skd": SKD,
    "ifvd": IFVD,
    "dsd": DSD,
    "adv": Adversarial,
    "mgd": MGD,
    "af_dcd": AfDCD,
    "cirkd": CIRKD,
    "cirkd_pixel": CIRKDPixel,
    "cirkd_region": CIRKDRegion,
    "cirkd2": CIRKD2,
}


# what a training record says besides the terms
RESERVED = ("event", "iteration", "loss", "ce", "aux", "lr", "images_per_second", "cpu_seconds", "memory_gb")


def loss_class(name: str, flag: str) -> type[nn.Module]:
    """A loss of this project by its name, or ``package.module:Class``."""
    return load_class(name, flag) if ":" in name else lookup(LOSSES, name, f"loss in {flag}")


def parse_losses(text: str, flag: str = "--kd") -> dict[str, tuple[float, dict[str, float]]]:
    """``"cwd=3,kd=1:tau=4"`` -> ``{"cwd": (3.0, {}), "kd": (1.0, {"tau": 4.0})}``; ``"none"`` -> ``{}``.

    A loss of one's own is ``package.module:Class=weight:option=value``.

    Raises UserError: an unknown loss or option, a value that is no number, a name twice; each names ``flag``.
    """
    losses: dict[str, tuple[float, dict[str, float]]] = {}
    for part in text.split(",") if text.strip() != "none" else []:
        items = [item.strip() for item in part.split(":")]
        if len(items) > 1 and "=" not in items[0] and items[0] not in LOSSES:
            items[:2] = [":".join(items[:2])]
        (name, _, weight), *options = [item.partition("=") for item in items]
        known = list(inspect.signature(loss_class(name, flag)).parameters)[3:]  # after channels and classes: options
        for option, _, _ in options:
            if option not in known:
                raise UserError(f"{flag} {text}: {name} has no option {option!r}{nearest(option, known)}")
            known.remove(option)  # a second time it is none
        if term_name(name) in map(term_name, losses):
            raise UserError(f"{flag} {text}: {term_name(name)} is given twice")
        try:
            losses[name] = float(weight), {option: float(value) for option, _, value in options}
        except ValueError:
            raise UserError(f"{flag} {text}: write name=weight, e.g. cwd=3 or kd=1:tau=4; all are numbers") from None
        if not math.isfinite(losses[name][0]):
            raise UserError(f"{flag} {text}: {name}={weight} is no weight")
        if name in LOSSES and not 0 < (tau := losses[name][1].get("tau", 1.0)) < math.inf:
            raise UserError(f"{flag} {text}: tau={tau:g} of {name}: give a positive number")
    return losses


def term_name(name: str) -> str:
    """Under which a loss is logged and saved."""
    return name.rpartition(":")[2]


def _part_weights(loss: nn.Module) -> Mapping[str, float]:
    return getattr(loss, "part_weights", None) or {}


class WeightedLosses(nn.Module):
    """Several distillation losses with their weights, in full precision, on maps of the student's size.

    The teacher gets no gradient, whether a loss stops it or not: a network may be its own teacher. A loss returns its
    value, or a dict of parts whose weighted sum it is, by its ``part_weights``.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The weighted sum (0.0 without losses), and every unweighted term by name; parts are ``name_part``.

        Raises UserError: teacher and student of different classes, a loss whose value is no single number.
        """
        classes = student.logits.shape[1], teacher.logits.shape[1]
        if classes[0] != classes[1]:
            raise UserError(f"the student has {classes[0]} classes, its teacher {classes[1]}: they must be the same")
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = student.map(full_precision), teacher.map(full_precision).map(Tensor.detach)
            logits = resize(teacher.logits, student.logits.shape[-2:])
            teacher = teacher._replace(logits=logits, feat=resize(teacher.feat, student.feat.shape[-2:]))
            terms: dict[str, Tensor] = {}
            for name, loss in self.losses.items():
                value = loss(student, teacher, label)
                if isinstance(value, Mapping):
                    if value.keys() - _part_weights(loss).keys():
                        raise UserError(f"the loss {name} returned {', '.join(value)}: part_weights must have all")
                    terms |= {f"{name}_{part}": term for part, term in value.items()}
                    value = sum(loss.part_weights[part] * term for part, term in value.items())
                if not isinstance(value, Tensor) or value.ndim:
                    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                    raise UserError(f"the loss {name} returned no single number but {shown}")
                terms[name] = value
        return sum((self.weights[name] * terms[name] for name in self.weights), start=0.0), terms

    def weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each unweighted term adds to the sum, as ``name_weighted``."""
        factors = dict(self.weights)
        for name, loss in self.losses.items():
            inner = _part_weights(loss).items()
            factors |= {f"{name}_{part}": self.weights[name] * weight for part, weight in inner}
        return {f"{name}_weighted": factors[name] * term for name, term in terms.items()}


def build_kd(
    text: str, student_channels: int, teacher_channels: int, num_classes: int, flag: str = "--kd"
) -> WeightedLosses:
    """The losses of a ``--kd`` value; channels are those of the networks' ``feat``.

    Raises UserError: see ``parse_losses``; a loss or a part of it called like another, or like what is logged besides.
    """
    parsed, losses = parse_losses(text, flag), {}
    for name, (_, options) in parsed.items():
        try:
            made = loss_class(name, flag)(student_channels, teacher_channels, num_classes, **options)
        except UserError as error:
            raise UserError(f"{flag} {text}: {name}: {error}") from error
        if any(map(math.isnan, options.values())):
            raise UserError(f"{flag} {text}: an option of {name} is no number")
        losses[term_name(name)] = made
    terms = list(losses)
    for name, loss in losses.items():
        terms += [f"{name}_{part}" for part in _part_weights(loss)]
    terms += [f"{term}_weighted" for term in terms]
    for term in terms:
        if terms.count(term) > 1 or term in RESERVED or hasattr(nn.ModuleDict, term):
            raise UserError(f"{flag} {text}: {term} is the name of something else in a training log: rename the class")
    share_projector(losses.values())
    return WeightedLosses(losses, {term_name(name): weight for name, (weight, _) in parsed.items()})
