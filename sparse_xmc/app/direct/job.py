"""A direct run: terms, targets, solver, bundle; a killed one goes on with the first stage that is missing."""

from __future__ import annotations

import os
from typing import Any

from sparse_xmc._heap import give_back
from sparse_xmc.app.beginning import Beginning, model_of
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.direct.foresight import check_before_reading, check_before_solving
from sparse_xmc.app.direct.later import solve_later
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.direct.split import TermSplit
from sparse_xmc.app.direct.stages import StageFolder
from sparse_xmc.app.direct.terms_choice import choose_terms, is_open
from sparse_xmc.app.hold_out import hold_out
from sparse_xmc.app.jobs.evaluation import calibrate_
from sparse_xmc.app.prepare import Terms
from sparse_xmc.app.run import Run
from sparse_xmc.app.run_folder import CHECKPOINTS, digest
from sparse_xmc.app.splits import check_effects, open_data
from sparse_xmc.data import Features, LabelVocabulary, SparseInputs
from sparse_xmc.kernels.threads import set_num_threads
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import Plan, Stages, plan_for


class DirectRun(Run):
    """A run of the direct solver."""

    def train(self) -> dict[str, Any]:
        """Solves, stage by stage, and evaluates; only once it is clear that it can be done is the folder this run's."""
        if self.config.threads:
            set_num_threads(self.config.threads)
        data = self.prepare()
        give_back()
        bundle = self.solved(data)
        metrics = {}
        if self.config.test:
            metrics = self.evaluate(bundle, *self.test_split(bundle))
        self.publish(metrics)
        return metrics

    def prepare(self) -> TermSplit:
        """Reads the data; refuses a folder that holds another run."""
        self.chosen = config = self.config  # chosen: with what the run decides on
        self.check_folder()
        base = model_of(config) if config.from_ is not None else None
        preparation: Any = Terms(config.term_options) if base is None else base.preparation
        texts = base is not None and preparation.reads_texts
        source = open_data(config, config.train, config.train_labels, texts=texts)
        check_effects(config, source)
        check_before_reading(config, source)
        inputs, rows = preparation.fit(source) if base is None else preparation.extend(source)
        self.report(source.summary())
        self.check_rows(rows)
        if not isinstance(source, Features) and is_open(config):
            self.chosen = choose_terms(config, iter(source), LabelVocabulary.from_rows(rows).encode(rows), self.report)
            if self.chosen != config:
                preparation = Terms(self.chosen.term_options)
                inputs, rows = preparation.fit(source)
        held_out = None
        if config.calibration_share:
            (inputs, rows), held_out = hold_out(inputs, rows, config.calibration_share, config.seed)
        assert isinstance(inputs, SparseInputs)
        beginning = None if base is None else Beginning.of(base, config, inputs, rows)
        vocabulary = LabelVocabulary.from_rows(rows) if beginning is None else beginning.vocabulary
        data = TermSplit(preparation, inputs, vocabulary, vocabulary.encode(rows), held_out, beginning)
        self.report(f"{len(inputs):,} rows, {len(vocabulary):,} labels, {data.num_features:,} features")
        terms = preparation.state()[0]
        self.digests = {"training data": digest(inputs, data.targets, vocabulary.names, terms)}
        if beginning is not None:
            self.report(beginning.summary())
            self.digests["content of from"] = beginning.bundle.digest
        self.check_data(config, self.digests, data.num_features)
        return data

    def solved(self, data: TermSplit) -> Bundle:
        config = self.config
        plan = plan_for(
            config.effort,
            data.frequencies,
            data.num_features,
            fan_in=config.fan_in,
            memory=config.head_memory,
            entries=data.inputs.matrix.nnz / max(len(data.inputs), 1),
            rows=len(data.inputs),
        )
        check_before_solving(config, data.sizes(), plan)
        run = self.claim(config, self.digests, data.num_features)
        if os.path.isdir(self.model_folder) or os.path.isdir(f"{self.model_folder}.old"):
            self.report(f"the run is finished, model in {self.model_folder}")  # it is saved last of all
            return Bundle.load(config.out, device="cpu")
        stages = StageFolder(os.path.join(config.out, CHECKPOINTS), run, self.report)
        bundle = (
            self.solve(data, plan, stages) if data.beginning is None else solve_later(data, config, plan, self.report)
        )
        self.report(f"head: {bundle.model.head_bytes() / 2**20:.1f} MiB")
        if data.held_out is not None:
            calibrate_(bundle, *data.held_out)
        bundle.save(self.model_folder, run=run)
        if not config.keep_stages:
            stages.remove()
        self.said_trained()
        return bundle

    def solve(self, data: TermSplit, plan: Plan, stages: Stages) -> Bundle:
        """Solves for the head and says in three lines what was chosen."""
        config = self.config
        solution = fit(
            data.inputs.matrix,
            data.targets,
            plan,
            held_out=config.held_out,
            tail=config.tail,
            seed=config.seed,
            propensity=(config.propensity_a, config.propensity_b),
            stages=stages,
            progress=config.progress,
        )
        for line in solution.lines:
            self.report(line)
        model = TermModel.from_solution(solution.head, data.num_features)
        calibration = None
        if solution.judged is not None:
            scores, hits = solution.judged
            calibration = Calibration.fit(model.estimates(scores), hits)
        return data.bundle(self.chosen, model, calibration, solution.settings)
