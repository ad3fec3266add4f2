"""Estimate what the folded network costs on real images, next to the same network as an ANN."""

from __future__ import annotations

from itertools import zip_longest

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from .._batches import images_of
from ..analysis.accounting import Accounting, AccountingName, accounting_of
from ..analysis.energy import EnergyReport, energy_rows, measure_energy
from ..analysis.figures import plot_energy
from ..analysis.run_logs import RunLogs
from ..analysis.sections import BARS, Fact, ReportSection, SectionContent, evenly_chosen
from ..folding import FoldError, fold
from ..folding.verification import samples
from ._common import network_of, require_logger, target_of
from .run_files import run_folder, write_json

__all__ = ["ENERGY", "EnergyMonitor"]

_FILE = "energy.json"


class EnergyMonitor(Callback):
    """Count the operations of the folded network on some validation images, and what energy they stand for.

    A copy of the network is folded (``integer_pools=True``) and run on the first validation images, or training images
    where there is no validation; :mod:`lightning_tspike.analysis.energy` has the accounting. Every logger gets, per
    image, ``energy/synops``, ``energy/macs``, ``energy/signs``, ``energy/microjoules``, ``energy/ann_microjoules``,
    ``energy/ratio`` and ``energy/synops_share``, the synaptic operations as a share of the MACs of the layers that read
    spikes, over all time steps; the numbers of every layer and the accounting go to ``energy.json`` in the run's
    folder. Only the first process measures.

    Args:
        every_n_epochs: Also measure after every n epochs; by default when training ends, which costs no time before.
        images: How many images.
        mac_picojoules: In place of the accounting's energy of a multiply-accumulate, in pJ.
        ac_picojoules: In place of the accounting's energy of an accumulate, in pJ.
        accounting: What an operation costs: ``"horowitz"`` or ``"paper"``
            (:mod:`lightning_tspike.analysis.accounting`), or an ``Accounting`` with constants of your own.

    Raises:
        MisconfigurationException: An option is out of range, the trainer has no logger, or the module has no spiking
            network in ``network``.

    Warns:
        UserWarning: The network cannot be folded, or a batch has no images that can be told; nothing is measured then.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        images: int = 32,
        mac_picojoules: float | None = None,
        ac_picojoules: float | None = None,
        accounting: AccountingName | Accounting = "horowitz",
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise MisconfigurationException(f"every_n_epochs must be at least 1, or None; got {every_n_epochs!r}")
        if images < 1:
            raise MisconfigurationException(f"images must be at least 1, got {images!r}")
        self.every_n_epochs, self.images = every_n_epochs, images
        try:
            self.accounting = accounting_of(accounting, mac_picojoules, ac_picojoules)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._images: Tensor | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logger(trainer, self)
        network_of(pl_module, self)
        self._images = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._images is None:
            self._keep(trainer, batch)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and dataloader_idx == 0:
            self._keep(trainer, batch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module)

    def _keep(self, trainer: Trainer, batch: object) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self._images = images_of(batch)[: self.images].detach().clone()
        except ValueError as error:  # of a module of your own, which reads its batches otherwise
            rank_zero_warn(f"EnergyMonitor measures nothing: {error}")

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._images is None:
            return
        network = network_of(pl_module, self)
        try:
            folded, _ = fold(network, self._images[: samples(network.timesteps)], integer_pools=True)
        except FoldError as error:
            rank_zero_warn(f"EnergyMonitor measures nothing: {error}")
            return
        report = measure_energy(folded, self._images.to(next(folded.parameters())), self.accounting)
        scalars = {
            "energy/synops": report.synops,
            "energy/macs": report.macs,
            "energy/signs": report.signs,
            "energy/microjoules": report.total_picojoules / 1e6,
            "energy/ann_microjoules": report.ann_picojoules / 1e6,
            "energy/ratio": report.total_picojoules / report.ann_picojoules,
        }
        if (share := report.synops_share()) is not None:
            scalars["energy/synops_share"] = share
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
        write_json(run_folder(trainer) / _FILE, report.to_dict() | {"synops_target": target_of(pl_module)})


def _draw(logs: RunLogs) -> SectionContent | None:
    content = logs.json(_FILE)
    if content is None:
        return None
    report = EnergyReport.from_dict(content)
    layers = {
        layer.name: (report.picojoules(layer) / 1e6, report.mac_picojoules * layer.ann_macs / 1e6)
        for layer in report.layers
    }
    of_layers = [report.synops_share(layer) for layer in report.layers] if report.passes else []  # not in older files
    shares = ["" if share is None else f"{share:.1%}" for share in of_layers]
    return SectionContent(
        f"An estimate for the folded network, per image: {report.macs:,.0f} multiply-accumulates and "
        f"{report.synops:,.0f} accumulates, {report.total_picojoules / 1e6:.4g} uJ in all; as an ANN "
        f"{report.ann_picojoules / 1e6:.4g} uJ. Energies are those of the accounting {report.accounting}."
        f"{_say_share(report.synops_share(), content.get('synops_target'))}",
        [("Energy of every weighted layer", plot_energy(evenly_chosen(layers, BARS)))],
        ("weighted layer", "MACs", "SynOps", "uJ", "MACs as ANN", "uJ as ANN", *(["SynOps / MACs"] if shares else [])),
        [
            (*row, *([share] if shares else []))  # neurons, where they have a row at the end, have no share
            for row, share in zip_longest(energy_rows(report), shares, fillvalue="")
        ],
        [
            Fact(
                "energy per image",
                f"{report.total_picojoules / 1e6:.3g} uJ",
                f"{report.total_picojoules / report.ann_picojoules:.2f} of the ANN's, an estimate",
            )
        ],
    )


def _say_share(share: float | None, target: float | None) -> str:
    if share is None:
        return ""
    aim = "" if target is None else f"; the target in training is {target:.1%}"
    return f" Synaptic operations are {share:.1%} of the multiply-accumulates of the layers that read spikes{aim}."


ENERGY = ReportSection("Energy", _draw)
