"""Checking a profile against the machine before anything is paid for: `vpo doctor`.

Belongs here: what can be known without loading a model. Does not belong here: printing (vpo_assets/command_line.py),
or making the things that a profile names.
"""

from collections.abc import Iterator

from resources.doctor.compute import check_compute
from resources.doctor.devices import check_devices
from resources.doctor.disk import check_disk, check_home
from resources.doctor.endpoints import check_endpoints, check_keys
from resources.doctor.files import check_files
from resources.doctor.findings import Finding, Level
from resources.doctor.machine import Gpu, Machine, ThisMachine
from resources.doctor.memory_checks import check_memory
from resources.doctor.packages import check_packages
from resources.doctor.shared import check_shared
from resources.doctor.training import check_training
from resources.doctor.training_cluster import check_training_cluster
from resources.doctor.weights import survey
from resources.settings import Profile

__all__ = ["Finding", "Gpu", "Level", "Machine", "ThisMachine", "examine"]


def examine(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """Everything that can be said about a profile on a machine, as it is found, cheap things first."""
    yield from check_home(profile)
    yield from check_files(profile)
    yield from check_packages(profile, machine)
    yield from check_keys(profile, machine)
    yield from check_devices(profile, machine)
    yield from check_training(profile, machine)
    yield from check_shared(profile, machine)
    weights, findings = survey(profile)
    yield from findings
    yield from check_memory(profile, machine, weights)
    yield from check_disk(profile, machine, weights)
    yield from check_endpoints(profile, machine)
    yield from check_compute(profile, machine)
    yield from check_training_cluster(profile, machine, weights)
