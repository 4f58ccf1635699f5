"""Distillation losses by name: ``build_kd("cwd=3,kd=1:tau=4", ...)``. To add one, write a file and a line in LOSSES."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

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
from losses.interface import get_part_weights, reads_auxiliary_logits, reads_features
from losses.kd import KD
from losses.mgd import MGD
from losses.nfd import NFD
from losses.skd import SKD
from losses.user_losses import load_user_loss
from losses.weighted import WeightedLosses
from utils.errors import UserError, get_first_line, lookup, suggest_nearest
from utils.types import LOG_FIELDS

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

# keys of a training record that are not distillation terms
RESERVED = (*LOG_FIELDS, "loss", "ce", "aux", "lr")


class ParsedLoss(NamedTuple):
    """Hold the weight and the options that ``--kd`` gives a loss."""

    weight: float
    options: dict[str, float]


ParsedLosses = dict[str, ParsedLoss]  # by name


def find_loss_class(name: str, flag: str) -> type[nn.Module]:
    """Return the class of a loss in LOSSES, or import a user's loss ``package.module:Class``.

    Raises:
        UserError: the name is unknown, or the user's class cannot be imported or used as a distillation loss.
    """
    if ":" in name:
        return load_user_loss(name, flag)
    return lookup(LOSSES, name, f"loss in {flag}")


def get_term_name(name: str) -> str:
    """Return the name under which a loss is logged and saved: the class name for ``package.module:Class``."""
    return name.rpartition(":")[2]


def parse_losses(text: str, flag: str = "--kd") -> ParsedLosses:
    """Parse ``"cwd=3,kd=1:tau=4"`` into ``{"cwd": (3.0, {}), "kd": (1.0, {"tau": 4.0})}``, and ``"none"`` into ``{}``.

    A user's loss is written ``package.module:Class=weight:option=value``.

    Raises:
        UserError: a loss or an option is unknown, a value is not a number, a weight is negative or infinite, tau is
            not positive, or a name is given twice. The message names ``flag``.
    """
    losses: ParsedLosses = {}
    if text.strip() == "none":
        return losses
    for part in text.split(","):
        name, weight, options = _split_loss(part)
        _require_known_options(name, [option for option, _ in options], text, flag)
        if get_term_name(name) in map(get_term_name, losses):
            raise UserError(f"{flag} {text}: {get_term_name(name)} is given twice")
        try:
            loss = ParsedLoss(float(weight), {option: float(value) for option, value in options})
        except ValueError:
            raise UserError(f"{flag} {text}: write name=weight, e.g. cwd=3 or kd=1:tau=4; all are numbers") from None
        if not 0 <= loss.weight < math.inf:
            raise UserError(f"{flag} {text}: {name}={weight} is no weight")
        tau = loss.options.get("tau", 1.0)
        if name in LOSSES and not 0 < tau < math.inf:
            raise UserError(f"{flag} {text}: tau={tau:g} of {name}: give a positive number")
        losses[name] = loss
    return losses


def _split_loss(part: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Split ``"name=weight:option=value"`` into its name, its weight and pairs of option and value."""
    items = [item.strip() for item in part.split(":")]
    if len(items) > 1 and "=" not in items[0] and items[0] not in LOSSES:
        items = [f"{items[0]}:{items[1]}", *items[2:]]  # package.module:Class
    name, _, weight = items[0].partition("=")
    options = []
    for item in items[1:]:
        option, _, value = item.partition("=")
        options.append((option, value))
    return name, weight, options


def _require_known_options(name: str, options: list[str], text: str, flag: str) -> None:
    """Check that the loss has these options, each given once.

    Raises:
        UserError: the loss or an option is unknown, or an option is given twice.
    """
    arguments = list(inspect.signature(find_loss_class(name, flag)).parameters)
    known = arguments[3:]  # after the student's channels, the teacher's channels and the number of classes
    for option in options:
        if option not in known:
            raise UserError(f"{flag} {text}: {name} has no option {option!r}{suggest_nearest(option, known)}")
        if options.count(option) > 1:
            raise UserError(f"{flag} {text}: the option {option} of {name} is given twice")


def build_kd(
    text: str, student_channels: int | None, teacher_channels: int | None, num_classes: int, flag: str = "--kd"
) -> WeightedLosses:
    """Build the losses of a ``--kd`` value.

    The channels are those of the networks' ``feat``, and None for a network that gives logits alone.

    Raises:
        UserError: a loss or an option is unknown or given twice, or a value is not a number. A loss refuses the value
            of an option, or reads features that a network does not give. A term has the name of something else in the
            training log.
    """
    parsed = parse_losses(text, flag)
    without_features = []
    if student_channels is None:
        without_features.append("student")
        student_channels = num_classes  # the logits stand in the place of the features
    if teacher_channels is None:
        without_features.append("teacher")
        teacher_channels = num_classes
    if without_features:
        _require_logits_losses(parsed, without_features, text, flag)
    losses: dict[str, nn.Module] = {}
    weights: dict[str, float] = {}
    for name, (weight, options) in parsed.items():
        try:
            loss = find_loss_class(name, flag)(student_channels, teacher_channels, num_classes, **options)
        except UserError as error:
            raise UserError(f"{flag} {text}: {name}: {error}") from error
        except Exception as error:  # a user's class may do anything
            if name in LOSSES:
                raise
            reason = f"{type(error).__name__}: {get_first_line(error)}"
            raise UserError(f"{flag} {text}: {name} cannot be built: {reason} (options are floats)") from error
        if not all(map(math.isfinite, options.values())):
            raise UserError(f"{flag} {text}: an option of {name} is no finite number")
        if name in LOSSES and any(value < 0 for value in options.values()):
            raise UserError(f"{flag} {text}: an option of {name} is negative")
        losses[get_term_name(name)] = loss
        weights[get_term_name(name)] = weight
    _require_unique_terms(losses, text, flag)
    share_projector(losses.values())
    return WeightedLosses(losses, weights)


def _require_logits_losses(parsed: ParsedLosses, roles: Sequence[str], text: str, flag: str) -> None:
    """Check that the losses read nothing but logits. roles: the networks that give logits alone.

    Raises:
        UserError: a loss reads features or auxiliary logits, or a user's loss does not say that it does not.
    """
    for name in parsed:
        loss_class = find_loss_class(name, flag)
        if not reads_features(loss_class) and not reads_auxiliary_logits(loss_class):
            continue
        network = f"the network of the {' and of the '.join(roles)}" if flag == "--kd" else "the network"
        message = f"{flag} {text}: {name} reads features (feat) or auxiliary logits, but {network} gives logits alone"
        fitting = ", ".join(known for known, known_class in LOSSES.items() if not reads_features(known_class))
        advice = f"use {fitting}, or have the network return an Output (docs/networks.md)"
        if name not in LOSSES:
            advice += "; a loss of your own that reads logits alone says so by reads_feat = False"
        raise UserError(f"{message}: {advice}")


def _require_unique_terms(losses: Mapping[str, nn.Module], text: str, flag: str) -> None:
    """Check that every term can be logged under its name.

    Raises:
        UserError: two terms have the same name, or one has a name that the log or ``nn.ModuleDict`` uses.
    """
    terms = list(losses)
    for name, loss in losses.items():
        terms += [f"{name}_{part}" for part in get_part_weights(loss)]
    terms += [f"{term}_weighted" for term in terms]
    for term in terms:
        if terms.count(term) > 1 or term in RESERVED or hasattr(nn.ModuleDict, term):
            raise UserError(f"{flag} {text}: {term} is the name of something else in a training log: rename the class")
