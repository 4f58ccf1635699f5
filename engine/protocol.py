"""How a network is evaluated: the views of an image whose logits are averaged."""

from dataclasses import dataclass

from utils.options import option


@dataclass(frozen=True)
class Protocol:
    """What a recipe may say of evaluation: its data set, and these settings as ``eval.<name>``."""

    dataset: str = option("", "data set (default: the checkpoint's)")
    resize: tuple[int, int] | None = option(
        None, "long and short side that images are resized to fit, keeping the ratio (MMSegmentation)", minimum=32
    )
    scales: tuple[float, ...] = option((1.0,), "input scales whose logits are averaged", minimum=0.05)
    flip: bool = option(False, "average with the mirrored input")
    window: tuple[int, int] | None = option(None, "height and width of a sliding window", minimum=32)
    stride: tuple[int, int] | None = option(None, "step of the window (default: two thirds of it)", minimum=1)

    def views(self) -> dict[str, object]:
        """Arguments of ``Predictor``."""
        return {name: getattr(self, name) for name in ("scales", "flip", "window", "stride", "resize")}

    def words(self) -> list[str]:
        """Each view in words; an empty one is not there."""
        resized = "resized to fit {}x{}".format(*self.resize) if self.resize else ""
        scales = "single scale" if self.scales == (1.0,) else f"scales {' '.join(map(str, self.scales))} (mean logits)"
        window = "window {}x{}".format(*self.window) if self.window else "whole image"
        return [resized, scales, window, "flip" * self.flip]
