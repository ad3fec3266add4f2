from .accounting import Accounting as Accounting
from .energy import EnergyReport as EnergyReport
from .energy import LayerEnergy as LayerEnergy
from .energy import measure_energy as measure_energy
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .html_report import write_report as write_report
from .sections import Fact as Fact
from .sections import LayerTag as LayerTag
from .sections import ReportSection as ReportSection
from .sections import SectionContent as SectionContent
from .speed import SpeedReport as SpeedReport
from .speed import measure_speed as measure_speed
from .spike_view import SpikeRecord as SpikeRecord
from .spike_view import record_spikes as record_spikes
from .spike_view import write_spike_page as write_spike_page
from .spikes import FiringRate as FiringRate
from .spikes import firing_rates as firing_rates

__all__ = [
    "Accounting",
    "EnergyReport",
    "Evaluation",
    "Fact",
    "FiringRate",
    "LayerEnergy",
    "LayerTag",
    "ReportSection",
    "SectionContent",
    "SpeedReport",
    "SpikeRecord",
    "evaluate",
    "firing_rates",
    "measure_energy",
    "measure_speed",
    "record_spikes",
    "write_report",
    "write_spike_page",
]
