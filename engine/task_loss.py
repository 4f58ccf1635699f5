"""Build the task loss of a network from the settings of its training."""

from engine.class_weights import parse_class_weights
from engine.settings import TrainConfig
from losses.task import TaskLoss
from models.segmentor import Segmentor


def build_task_loss(model: Segmentor, settings: TrainConfig) -> TaskLoss:
    """Build the supervised loss of a network.

    Raises:
        UserError: an unknown loss, or a bad option of it.
    """
    return TaskLoss(
        model.supervision,
        settings.aux_weight,
        settings.label_smoothing,
        settings.task_loss,
        settings.ignored_in_mean,
        parse_class_weights(settings.class_weights),
    )
