"""Networks from outside this project, named ``package.module:function`` (``--model``)."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from models.layers import freeze_unused
from models.segmentor import set_dropout
from utils.errors import UserError, get_first_line
from utils.types import Output, Supervision
from utils.user_code import import_user_object

ARGUMENTS = ("backbone", "num_classes", "in_channels")  # of the function, all by keyword
TRIED_SIZE = (128, 160)  # height and width of the images that a network is tried on
AUX_WEIGHT = 0.4  # of an auxiliary map, as in most architectures; --aux-weight replaces it


def is_user_network(arch: object) -> bool:
    """Return whether ``--model`` names a network from outside this project."""
    return isinstance(arch, str) and ":" in arch


def build_user_network(
    arch: str, backbone: str, num_classes: int, in_channels: int, flag: str = "--model"
) -> "UserNetwork":
    """Import a user's function, call it with ARGUMENTS, and try the network that it returns.

    flag: the flag that names the function, for messages.

    Raises:
        UserError: the function cannot be imported or called, or does not return a network that can be used here.
    """
    where = f"{flag} {arch}"
    example = "package.module:function, e.g. my_networks:tiny for tiny in my_networks.py"
    function = import_user_object(arch, where, example, callable)
    _require_arguments(function, arch, where)
    arguments = {"backbone": backbone, "num_classes": num_classes, "in_channels": in_channels}
    try:
        network = function(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the function may do anything
        call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise UserError(f"{where}({call}) fails: {_describe_error(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{where}: it must return a torch.nn.Module, and returns {_describe_kind(network)}")
    return UserNetwork(network, {"arch": arch, **arguments}, where)


def _require_arguments(function: Callable[..., Any], arch: str, where: str) -> None:
    """Check that a function can be called with ARGUMENTS by keyword.

    Raises:
        UserError: the object is no function, or takes other arguments.
    """
    name = arch.rpartition(":")[2]
    if not callable(function):
        raise UserError(f"{where}: {name} is no function but {_describe_kind(function)}")
    wanted = ", ".join(ARGUMENTS)
    try:
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys(ARGUMENTS))
    except (TypeError, ValueError) as error:
        taken = ", ".join(inspect.signature(function).parameters) if isinstance(error, TypeError) else "..."
        raise UserError(f"{where}: {name}({taken}) must take ({wanted}), which are given by keyword") from error


class UserNetwork(nn.Module):
    """A user's network with what the engine asks of a ``Segmentor``.

    ``network`` takes images ``[B, C, H, W]`` and returns an ``Output`` or the logits alone, a tensor ``[B, K, h, w]``.
    Logits alone then stand in the place of ``feat`` too, and ``feature_channels`` is None, so that losses which read
    features are refused. An attribute ``align_corners`` of the network, False where there is none, says how its logits
    are upsampled. ``config`` holds the arguments of ``build_model``.
    """

    def __init__(self, network: nn.Module, config: dict[str, Any], where: str) -> None:
        """Try the network on small images. Its weights stay the same; parameters that no map depends on are frozen.

        where: the flag and name of the network, with which messages begin.

        Raises:
            UserError: the network fails, or returns something other than an ``Output`` or logits of the right shape.
        """
        super().__init__()
        self.network = network
        self.config = config
        self.where = where
        self.feature_channels: int | None = None
        self.aux_maps = 0
        self._try_small_images()

    @property
    def supervision(self) -> tuple[Supervision, ...]:
        """Return how the logits and then each auxiliary map are supervised: by cross entropy."""
        align_corners = bool(getattr(self.network, "align_corners", False))
        main = Supervision(align_corners=align_corners)
        return (main, *[main._replace(weight=AUX_WEIGHT)] * self.aux_maps)

    def set_dropout(self, probability: float | None) -> None:
        """Set the probability of every dropout layer. Raises: as the function ``set_dropout``."""
        set_dropout(self.network.modules(), probability)

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """Return the network's output. ``with_aux=False`` leaves out auxiliary logits."""
        output = self._make_output(self.network(x))
        return output if with_aux else output._replace(aux=())

    def _make_output(self, returned: object) -> Output:
        """Return what the network returned as an ``Output``.

        Raises:
            UserError: ``returned`` is neither an ``Output`` nor a tensor.
        """
        if isinstance(returned, Output):
            return returned
        if isinstance(returned, Tensor):
            return Output(returned, (), returned)
        wanted = "the logits as one tensor, or an Output (utils/types.py)"
        raise UserError(f"{self.where}: the network must return {wanted}, and returns {_describe_kind(returned)}")

    def _try_small_images(self) -> None:
        """Run the network once in each mode. Set ``feature_channels`` and ``aux_maps``, and freeze unused parameters.

        DistributedDataParallel waits for the gradient of every parameter, and some of them would never get one.
        Weights, running statistics and torch's random state are the same afterwards.

        Raises:
            UserError: the network fails, or returns something else than it should.
        """
        if any(map(is_lazy, [*self.network.parameters(), *self.network.buffers()])):
            raise UserError(f"{self.where}: lazy layers are not taken: give them their numbers of channels")
        before = copy.deepcopy(self.network.state_dict())
        with torch.random.fork_rng(devices=[]):
            image = torch.randn(2, self.config["in_channels"], *TRIED_SIZE)
            self.network.eval()
            evaluated = self._run_checked(image)
            self.network.train()
            trained = self._run_checked(image)
        if _gives_features(evaluated) != _gives_features(trained):
            raise UserError(f"{self.where}: the network must return the same in training and in evaluation")
        if _gives_features(trained):
            self.feature_channels = trained.feat.shape[1]
        self.aux_maps = len(trained.aux)
        if torch.is_grad_enabled():
            maps = (trained.logits, trained.feat, *trained.aux)
            freeze_unused(self.network, sum(value.sum() for value in maps))
        self.network.load_state_dict(before)

    def _run_checked(self, image: Tensor) -> Output:
        """Run the network, and check types and shapes of what it returns.

        Raises:
            UserError: the network fails, or returns something else than it should.
        """
        shape = list(image.shape)
        try:
            returned = self.network(image)
        except (Exception, SystemExit) as error:  # the network may do anything
            hint = ""
            if image.shape[1] > 3:
                hint = f" (an assisted teacher sees the label in further planes: in_channels={image.shape[1]})"
            message = f"{self.where}: the network fails on images {shape}: {_describe_error(error)}{hint}"
            raise UserError(message) from error
        output = self._make_output(returned)
        maps = {"logits": output.logits, "feat": output.feat}
        if not isinstance(output.aux, (tuple, list)):
            raise UserError(f"{self.where}: Output.aux must be a tuple of maps, not {_describe_kind(output.aux)}")
        maps |= {f"aux[{index}]": value for index, value in enumerate(output.aux)}
        for name, value in maps.items():
            self._require_map(name, value, image)
        return output

    def _require_map(self, name: str, value: object, image: Tensor) -> None:
        """Check one map of an output: ``[B, K, h, w]`` of logits, ``[B, C, h, w]`` of features.

        Raises:
            UserError: the map is no float tensor of that shape.
        """
        classes = self.config["num_classes"]
        is_map = isinstance(value, Tensor) and value.ndim == 4 and len(value) == len(image)
        if is_map and value.is_floating_point() and (name == "feat" or value.shape[1] == classes):
            return
        wanted = "[B, C, h, w]" if name == "feat" else f"[B, {classes}, h, w], a channel for each of {classes} classes"
        given = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else _describe_kind(value)
        raise UserError(f"{self.where}: {name} must be float {wanted}; for images {list(image.shape)} it is {given}")


def _gives_features(output: Output) -> bool:
    """Return whether an output has features of its own. Otherwise the logits stand in their place."""
    return output.feat is not output.logits


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {get_first_line(error)}"


def _describe_kind(value: object) -> str:
    """Return what a value is, with the keys of a dictionary or the number of items."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind} with the keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"{kind} of {len(value)} items"
    return kind
