"""What an operation costs: the accountings of energy by name.

================ ============== ================= ================= ===================================================
name             a MAC          a synaptic        a sign operation  source
                                operation
================ ============== ================= ================= ===================================================
``"horowitz"``   4.6 pJ         0.9 pJ            not counted       32-bit floating point at 45 nm, a multiplication 3.7
                                                                    pJ and an addition 0.9 pJ: M. Horowitz, "Computing's
                                                                    energy problem (and what we can do about it)", ISSCC
                                                                    2014; the usual one in the field
``"paper"``      25 pJ, as 2    77 fJ             3.7 pJ            Table 5 of the ternary spike (Guo et al., AAAI 2024)
                 FLOPs of 12.5
================ ============== ================= ================= ===================================================

A sign operation is a neuron's comparison of its membrane potential with one threshold at one time step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

__all__ = ["ACCOUNTINGS", "HOROWITZ", "Accounting", "AccountingName", "accounting_of"]

AccountingName: TypeAlias = Literal["horowitz", "paper"]


@dataclass(frozen=True)
class Accounting:
    """Energy of one operation of each kind.

    Attributes:
        mac_picojoules: Of a multiply-accumulate, where a layer reads real numbers, in pJ.
        ac_picojoules: Of a synaptic operation (an accumulate), in pJ.
        sign_picojoules: Of a sign operation, in pJ; 0 does not count them.

    Raises:
        ValueError: An energy is out of range.
    """

    mac_picojoules: float = 4.6
    ac_picojoules: float = 0.9
    sign_picojoules: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 < energy < math.inf for energy in (self.mac_picojoules, self.ac_picojoules)):
            raise ValueError(f"energies must be positive, got {self.mac_picojoules!r} and {self.ac_picojoules!r} pJ")
        if not 0 <= self.sign_picojoules < math.inf:
            raise ValueError(f"sign_picojoules must be at least 0 pJ, got {self.sign_picojoules!r}")

    @property
    def name(self) -> str:
        """The name that it has among :data:`ACCOUNTINGS`, or ``"own"``."""
        return next((name for name, known in ACCOUNTINGS.items() if known == self), "own")

    def picojoules(self, macs: float, synops: float, signs: float = 0.0) -> float:
        """Energy of so many operations, in pJ."""
        return self.mac_picojoules * macs + self.ac_picojoules * synops + self.sign_picojoules * signs

    def __str__(self) -> str:
        signs = f", {self.sign_picojoules} pJ per sign" if self.sign_picojoules else ""
        return f"{self.name}: {self.mac_picojoules} pJ per MAC, {self.ac_picojoules} pJ per accumulate{signs}"


HOROWITZ = Accounting()

ACCOUNTINGS: dict[AccountingName, Accounting] = {
    "horowitz": HOROWITZ,
    "paper": Accounting(mac_picojoules=2 * 12.5, ac_picojoules=0.077, sign_picojoules=3.7),
}


def accounting_of(
    accounting: AccountingName | Accounting, mac_picojoules: float | None = None, ac_picojoules: float | None = None
) -> Accounting:
    """The accounting of a name, or the one given.

    Args:
        accounting: Its name, or constants of your own.
        mac_picojoules: In place of its energy of a multiply-accumulate.
        ac_picojoules: In place of its energy of an accumulate.

    Raises:
        ValueError: There is no such name, or an energy is out of range.
    """
    if not isinstance(accounting, Accounting):
        if accounting not in ACCOUNTINGS:
            known = ", ".join(map(repr, ACCOUNTINGS))
            raise ValueError(f"accounting must be one of {known} or an Accounting, got {accounting!r}")
        accounting = ACCOUNTINGS[accounting]
    changes = {"mac_picojoules": mac_picojoules, "ac_picojoules": ac_picojoules}
    return replace(accounting, **{name: energy for name, energy in changes.items() if energy is not None})
