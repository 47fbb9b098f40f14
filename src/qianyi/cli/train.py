"""`qianyi train`: data to checkpoints."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from qianyi.cli.data import epoch_warnings, prepare_with_progress, research_warnings
from qianyi.cli.run import Session, begin
from qianyi.compile.fingerprint import check_fingerprint, fingerprint, versions
from qianyi.config.counts import MFU_CONVENTION, parameter_count
from qianyi.config.load import dump
from qianyi.data.stage import write_json
from qianyi.evaluate.perplexity import evaluate
from qianyi.monitor.environment import record_start
from qianyi.monitor.sinks import FanOut, JsonLines, Sink, TensorBoard, Terminal
from qianyi.parallel.options import compiler_options
from qianyi.train.checkpoint import Checkpoints
from qianyi.train.hardware import peak_flops
from qianyi.train.loop import Hooks, train_loop
from qianyi.train.signals import stop_on_signals
from qianyi.train.state import TrainState, abstract_state, init_state
from qianyi.train.step import make_eval_step, make_train_step

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
"""After a signal the state is saved: 130 as shells have it for Ctrl-C, 75 (EX_TEMPFAIL) for schedulers to requeue."""


def run(recipe: str, overrides: list[str]) -> None:
    session = begin(recipe, overrides)
    _check_compiled(session)
    with stop_on_signals() as stop:
        _prepare_data(session)
        checkpoints = session.checkpoints(must_exist=False)
        with jax.set_mesh(session.mesh):
            state = _start_state(session, checkpoints)
            sinks = _open_sinks(session, int(state.step))
            try:
                state = _train(session, state, checkpoints, sinks, stop.reached)
            finally:
                try:
                    checkpoints.close()
                finally:
                    sinks.close()
    _say_end(session, int(state.step))
    if stop.signal is not None:
        sys.exit(EXIT_CODES[stop.signal])


def _train(session: Session, state: TrainState, checkpoints: Checkpoints, sinks: Sink, stop: Callable[[int], bool]) -> TrainState:
    config = session.config
    eval_step = make_eval_step(config)

    def validate(state: TrainState, step: int) -> None:
        batches = session.validation_data.batches(session.batch_sharding, config.train.eval_batches)
        sinks.evaluation(evaluate(eval_step, state.params, batches, step))

    def save(state: TrainState, step: int) -> None:
        checkpoints.save(state, step, session.record)

    batches = session.training_data.batches(session.batch_sharding, int(state.step), config.train.steps)
    hooks = Hooks(emit=sinks.step, evaluate=validate, save=save, stop=stop)
    return train_loop(config, make_train_step(config), state, batches, peak_flops(config.run.peak_flops), hooks)


def _check_compiled(session: Session) -> None:
    """Whether what is about to run was proven, where the recipe asks."""
    config = session.config
    if config.run.compiled is None:
        return
    with jax.set_mesh(session.mesh):
        options = compiler_options(config.run.compiler_options)
    now = fingerprint(config, jax.devices()[0].device_kind, jax.device_count(), options, versions())
    check_fingerprint(Path(config.run.compiled), now)


def _prepare_data(session: Session) -> None:
    """One process prepares, the others wait."""
    if jax.process_index() == 0:
        manifest = prepare_with_progress(session.config)
        for line in research_warnings(manifest):
            print(line)
        session.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(session.run_dir / "data.json", manifest)
    multihost_utils.sync_global_devices("data prepared")


def _start_state(session: Session, checkpoints: Checkpoints) -> TrainState:
    if checkpoints.latest_step() is None:
        return init_state(session.config, session.mesh)
    return checkpoints.restore(abstract_state(session.config, session.mesh), session.record)


def _open_sinks(session: Session, step: int) -> Sink:
    """Process 0 reports; the others are silent."""
    if jax.process_index() != 0:
        return FanOut([])
    config, run_dir = session.config, session.run_dir
    partial = run_dir / ".config.yaml.partial"
    partial.write_text(dump(session.resolved), encoding="utf-8")
    partial.rename(run_dir / "config.yaml")
    device = jax.devices()[0]
    devices = {"platform": device.platform, "device_kind": device.device_kind, "devices": jax.device_count()}
    record_start(run_dir, {"start_step": step, "processes": jax.process_count(), **devices})
    _say_start(session, step)
    sinks: list[Sink] = [JsonLines(run_dir, step), Terminal(config.train.steps, step)]
    if config.run.tensorboard:
        sinks.append(TensorBoard(run_dir, step))
    return FanOut(sinks)


def _say_start(session: Session, step: int) -> None:
    config = session.config
    print(
        f"{parameter_count(config.model):,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind} "
        f"({config.layout.words}), {jax.process_count()} process(es)"
    )
    if peak_flops(config.run.peak_flops) is None:
        print("MFU: not shown, the peak of this device is not known; set run.peak_flops to see it")
    else:
        print(f"MFU: {MFU_CONVENTION}")
    for name, share in session.training_data.left_out.items():
        print(f"{name}: {share:.1%} of pairs are longer than train.seq_len or train.objective.target_len, and left out")
    for line in epoch_warnings(session.training_data.epochs(config.train.steps)):
        print(line)
    for name, shares in session.training_data.packing_shares.items():
        print(
            f"{name}: packed by best fit; {shares.padding:.2%} of places are empty, {shares.cut_documents:.2%} of documents are cut"
        )
    began = f"continuing after step {step}" if step else "starting"
    print(f"{began}; writing to {session.run_dir}", flush=True)


def _say_end(session: Session, step: int) -> None:
    if jax.process_index() == 0:
        done = step >= session.config.train.steps
        print(f"{'finished' if done else 'stopped and saved'} at step {step}{'' if done else '; the same command continues'}")
