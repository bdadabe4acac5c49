"""A run of the direct solver, from prepared rows to its bundle."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparse_xmc.app.assemble import Prepared
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.direct.model import solved_model
from sparse_xmc.data import SparseInputs
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import Plan, Stages, plan_for


def direct_plan(prepared: Prepared) -> Plan:
    """What a run will try.

    Raises:
        ValueError: the head does not fit into the memory allowed, or has more connections than there are terms.
    """
    config = prepared.config
    return plan_for(
        config.effort,
        prepared.frequencies,
        prepared.num_features,
        fan_in=config.fan_in,
        memory=config.head_memory,
    )


def solve(prepared: Prepared, plan: Plan, stages: Stages, report: Callable[[str], object]) -> Bundle:
    """Solves for the head and says in three lines what was chosen."""
    config = prepared.config
    assert isinstance(prepared.inputs, SparseInputs)
    solution = fit(
        prepared.inputs.matrix,
        prepared.targets,
        plan,
        held_out=config.held_out,
        tail=config.tail,
        seed=config.seed,
        propensity=(config.propensity_a, config.propensity_b),
        stages=stages,
        progress=config.progress,
    )
    for line in solution.lines:
        report(line)
    model = solved_model(solution.head, prepared.num_features)
    calibration = None
    if solution.judged is not None:
        scores, hits = solution.judged
        calibration = Calibration.fit(model.as_probabilities(torch.from_numpy(scores)).numpy(), hits)
    return Bundle(
        config,
        model,
        prepared.preparation,
        prepared.vocabulary,
        prepared.frequencies,
        prepared.num_train,
        prepared.num_features,
        calibration,
        solution.settings,
    )
