"""Keep the outputs of a network's stages during one forward pass."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from nnunetv2_kd.networks.stages import stage_modules


class Taps:
    """Forward hooks that keep the output of some stages while `recording`.

    Args:
        network: the network, before it is compiled or wrapped; the hooks survive both.
        stages: the names under which outputs are kept, each with the name of its stage in `stage_modules`.
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
        """Keep these features as if the network had output them."""
        self._features.update(features)

    def take(self) -> dict[str, Tensor]:
        """Return the features of the last forward pass by name, and forget them."""
        features = dict(self._features)
        # cleared, not replaced: a compiled forward pass is recompiled if the dict that it writes to is another one
        self._features.clear()
        return features
