"""Declare the settings of an evaluation: which views of an image are predicted and averaged.

A *view* is the image at one scale, mirrored or not. The logits of all views are averaged.
"""

from dataclasses import dataclass, fields
from functools import partial

from utils.options import option

view_option = partial(option, group="evaluation")


@dataclass(frozen=True)
class ViewSettings:
    """Hold the settings that say which views of an image are predicted."""

    resize: tuple[int, int] | None = view_option(
        None, "long and short side that images are resized to fit, keeping the ratio (MMSegmentation)", minimum=32
    )
    scales: tuple[float, ...] = view_option((1.0,), "input scales whose logits are averaged", minimum=0.05, maximum=16)
    flip: bool = view_option(False, "average with the mirrored input")
    window: tuple[int, int] | None = view_option(None, "height and width of a sliding window", minimum=32)
    stride: tuple[int, int] | None = view_option(None, "step of the window (default: two thirds of it)", minimum=1)

    def get_view_options(self) -> dict[str, object]:
        """Return the arguments of ``Predictor``."""
        return {field.name: getattr(self, field.name) for field in fields(ViewSettings)}


@dataclass(frozen=True)
class EvalProtocol(ViewSettings):
    """Hold the settings of evaluation that a recipe may give: the data set, and the views as ``eval.<name>``."""

    dataset: str = option("", "data set (default: the checkpoint's)", group="data")

    def describe(self) -> list[str]:
        """Describe the views in words."""
        words = []
        if self.resize:
            words.append("resized to fit {}x{}".format(*self.resize))
        if self.scales == (1.0,):
            words.append("single scale")
        else:
            words.append(f"scales {' '.join(map(str, self.scales))} (mean logits)")
        words.append("window {}x{}".format(*self.window) if self.window else "whole image")
        if self.window and self.stride:
            words.append("stride {}x{}".format(*self.stride))
        if self.flip:
            words.append("flip")
        return words
