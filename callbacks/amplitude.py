"""Log what the neurons of every layer learn: spike amplitude, decay and threshold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from ..analysis.figures import plot_amplitudes, plot_over_time
from ..analysis.run_logs import RunLogs
from ..analysis.sections import (
    LINES,
    LayerTag,
    ReportSection,
    SectionContent,
    evenly_chosen,
    left_out,
    thinned_series,
)
from ..graph.tracing import TraceError
from ..network.spiking_network import SpikingNetwork
from ..neurons import SpikingNeuron
from ._common import check_every_n_steps, is_log_step, network_of, require_logger
from ._history import History, RemembersLayers
from .run_files import run_folder

__all__ = ["AMPLITUDES", "AmplitudeLogger"]

_AMPLITUDE, _CANCELLED_AMPLITUDE = LayerTag("amplitude"), LayerTag("amplitude_cancelled")
_GRADIENT, _DECAY, _THRESHOLD = LayerTag("amplitude_gradient"), LayerTag("decay"), LayerTag("threshold")
_HISTORY = "amplitude_history.json"


class AmplitudeLogger(RemembersLayers):
    """Log each learned amplitude, decay and threshold as a scalar to every logger, and plot the amplitudes at the end.

    * ``amplitude/<layer>``: the amplitude a,
    * ``amplitude_cancelled/<layer>``: the same of those that a norm divides out wherever they go, so that nothing
      drives them (``freeze_cancelled=False``; else they are no parameters),
    * ``amplitude_gradient/<layer>``: norm of the gradient of the parameter in the optimizer step,
    * ``decay/<layer>`` and ``threshold/<layer>``, where they are learned.

    Of values per channel, the least, the mean and the greatest: ``amplitude/<layer>/min``, ``/mean`` and ``/max``.
    Values are those after the step under whose number they are logged. Layers that share an amplitude
    (``network.report()`` tells) are logged under the first one's name.

    When training ends, a figure of the amplitudes by depth, from the first values to the last, is written as
    ``amplitudes.png`` to the run's folder, and logged to TensorBoard and W&B. Checkpoints hold the values so far,
    thinned out to 128 steps, so that a resumed run and its report draw from the first step: in the folder of such a
    run, ``amplitude_history.json`` has what came before.

    Args:
        every_n_steps: Log every n optimizer steps; by default as often as the trainer logs.

    Raises:
        MisconfigurationException: ``every_n_steps`` is below 1, the trainer has no logger, or the module has no
            spiking network in ``network``.

    Example:
        >>> trainer = Trainer(callbacks=[AmplitudeLogger(every_n_steps=100)])
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(_HISTORY)  # mean amplitude of each layer
        self.every_n_steps = check_every_n_steps(every_n_steps)
        self._last_step = -1
        self._cancelled: set[str] = set()
        self._gradients: dict[str, Tensor] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logger(trainer, self)
        network = network_of(pl_module, self)
        self._last_step = trainer.global_step
        self._cancelled = _cancelled(network)
        if trainer.is_global_zero:
            self._history.write(run_folder(trainer))
        self._history.add(trainer.global_step, _means(network))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # the step counts itself when it is done
        if (trainer.global_step + 1) % self._interval(trainer) == 0:
            self._gradients = {
                _GRADIENT(name): raw.grad.norm()
                for name, _, raw in _amplitudes(network_of(pl_module, self))
                if raw.grad is not None
            }

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        # With gradient accumulation several batches end at the same step.
        if trainer.global_step == self._last_step or not is_log_step(trainer, self.every_n_steps):
            return
        self._last_step = trainer.global_step
        network = network_of(pl_module, self)
        scalars = {name: norm.item() for name, norm in self._gradients.items()}
        for name, neuron, _ in _amplitudes(network):
            tag = _CANCELLED_AMPLITUDE if name in self._cancelled else _AMPLITUDE
            scalars |= _scalars(tag, name, neuron.amplitude)
        for name, neuron in network.neurons().items():
            if isinstance(neuron.decay, Tensor):
                scalars |= _scalars(_DECAY, name, neuron.decay)
            if isinstance(neuron.threshold, nn.Parameter):
                scalars |= _scalars(_THRESHOLD, name, neuron.firing_threshold)
        if scalars:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step)
        self._history.add(trainer.global_step, _means(network))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._history.add(trainer.global_step, _means(network_of(pl_module, self)))
        history = self._history.values
        if not trainer.is_global_zero or not any(history.values()):
            return
        figure = plot_amplitudes(history, cancelled=self._cancelled)
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "amplitudes.png", dpi=120)
        for logger in trainer.loggers:
            _log_figure(logger, figure, trainer.global_step)

    def _interval(self, trainer: Trainer) -> int:
        settings: Any = trainer
        return self.every_n_steps or settings.log_every_n_steps


def _amplitudes(network: SpikingNetwork) -> Iterator[tuple[str, SpikingNeuron, nn.Parameter]]:
    """Layer, neuron and parameter of every learned amplitude, each parameter once."""
    seen = set()
    for name, neuron in network.neurons().items():
        raw = neuron.raw_amplitude
        if raw is not None and raw not in seen:
            seen.add(raw)
            yield name, neuron, raw


def _cancelled(network: SpikingNetwork) -> set[str]:
    try:
        return {neuron.name for neuron in network.report().neurons if neuron.effect == "cancelled"}
    except TraceError:  # trained, but never folded: nothing is known of it
        return set()


def _means(network: SpikingNetwork) -> dict[str, float]:
    return {name: neuron.amplitude.mean().item() for name, neuron, _ in _amplitudes(network)}  # type: ignore[union-attr]


def _scalars(tag: LayerTag, layer: str, value: Any) -> dict[str, float]:
    value = value.detach()
    if value.ndim == 0:
        return {tag(layer): value.item()}
    numbers = {"min": value.min(), "mean": value.mean(), "max": value.max()}
    return {tag(layer, part): number.item() for part, number in numbers.items()}


def _log_figure(logger: Logger, figure: Figure, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure("amplitudes", figure, step)
    elif isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({"amplitudes": wandb.Image(figure), "trainer/global_step": step})


def _draw(logs: RunLogs) -> SectionContent | None:
    logged = (tag.series(logs.scalars, "", "mean") for tag in (_AMPLITUDE, _CANCELLED_AMPLITUDE))
    live, cancelled = (History(_HISTORY).before(logs, series) for series in logged)
    gradients = _GRADIENT.series(logs.scalars)
    if not live and not cancelled:
        return None
    rows = [
        (
            name,
            effect,
            f"{values[0]:.4f}",
            f"{values[-1]:.4f}",
            f"{gradients[name][1][-1]:.2e}" if name in gradients else "",
        )
        for effect, series in (("live", live), ("cancelled by a norm", cancelled))
        for name, (_, values) in series.items()
    ]
    series = live | cancelled
    drawn = evenly_chosen(series, LINES)
    figure = plot_over_time(thinned_series(drawn), "amplitude")
    return SectionContent(
        "Learned spike amplitudes by layer (of channels: their mean). Where a norm cancels an amplitude, it receives "
        "no gradient, so its value is arbitrary; those that are frozen at 1 are not listed. "
        f"{left_out(series, drawn, 'layers')}",
        [("Amplitude of every layer over the steps", figure)],
        ("neuron layer", "effect", "first", "last", "norm of the last gradient"),
        rows,
    )


AMPLITUDES = ReportSection("Amplitudes", _draw)
