"""What an exported file says of its network, so that whoever runs it needs nothing of this package."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ..data.image_transforms import CROP_PCT, INTERPOLATION, MODES
from ..files.input_spec import InputSpec
from ..network.spiking_network import SpikingNetwork

__all__ = ["facts_of", "input_spec_of"]


def facts_of(
    network: SpikingNetwork, *, name: str | None, license: str | None, weights: str, is_step: bool
) -> dict[str, Any]:
    """What is written into a file beside the network, as JSON can hold it; what is not known is left out.

    ===================  ============================================================================================
    ``name``             of the network
    ``architecture``     of the backbone
    ``timesteps``        T: in a file of all time steps that of the file; in one of a single step that of training
    ``computes``         ``"all time steps"`` or ``"one time step"``
    ``memories``         of a single step: {place of a neuron: shape of its memory for one input}, to start from zeros;
                         for a batch its first dimension is so many times as long
    ``weights``          ``"float32"`` or ``"int8"``
    ``preprocessing``    ``input_size`` [C, H, W], ``mean``, ``std``; of images also ``color`` (PIL's mode),
                         ``interpolation`` and ``crop_pct``, of recordings ``frames`` (``timesteps``, ``slice_by``,
                         ``sensor_size``): as in :class:`lightning_tspike.files.input_spec.InputSpec`
    ``label_names``      of the K classes
    ``license``          of the weights
    ``library``          what wrote the file
    ===================  ============================================================================================
    """
    cfg = network.pretrained_cfg
    facts = {
        "name": name,
        "architecture": cfg.get("architecture") or (network.config.backbone if network.config else None),
        "timesteps": network.timesteps,
        "computes": "one time step" if is_step else "all time steps",
        "weights": weights,
        "preprocessing": _preprocessing(input_spec_of(network)),
        "label_names": cfg.get("label_names"),
        "license": license,
        "library": f"lightning-tspike {version('lightning-tspike')}",
    }
    return {key: value for key, value in facts.items() if value is not None}


def input_spec_of(network: SpikingNetwork) -> InputSpec:
    """What is known of a network's input."""
    known = InputSpec.__dataclass_fields__.keys() - {"others"}
    return InputSpec.of({key: value for key, value in network.pretrained_cfg.items() if key in known})


def _preprocessing(spec: InputSpec) -> dict[str, Any] | None:
    if not spec.is_complete:
        return None
    if spec.frames is not None:
        return spec.to_dict()
    channels = spec.complete()[0][0]
    color = {"color": MODES[channels]} if channels in MODES else {}
    # defaults written out: who reads the file does not know ours
    return {"interpolation": INTERPOLATION, "crop_pct": CROP_PCT, **color, **spec.to_dict()}
