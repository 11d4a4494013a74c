"""Keep what stages of a network put out during one forward pass."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from nnunetv2_kd.networks.stages import stage_modules


class Taps:
    """Forward hooks that keep the output of some stages while `recording`.

    Args:
        network: the network, not compiled and not wrapped. Hooks set here survive both.
        stages: under which name each stage is kept; the values are names as in `stage_modules`.
    """

    def __init__(self, network: nn.Module, stages: Mapping[str, str]) -> None:
        self.recording = False
        self._features: dict[str, Tensor] = {}
        modules = stage_modules(network) if stages else {}
        for name, stage in stages.items():
            modules[stage][0].register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.recording:
                self._features[name] = output

        return keep

    def put(self, features: Mapping[str, Tensor]) -> None:
        """Keep these as if the network had put them out."""
        self._features.update(features)

    def take(self) -> dict[str, Tensor]:
        """The features of the last forward pass by name, which are then no longer kept."""
        features = dict(self._features)
        # cleared and not replaced: a compiled forward pass guards on the dict that it writes to
        self._features.clear()
        return features
