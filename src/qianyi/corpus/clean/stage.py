"""`clean`: a corpus measured (`OUT/measured`, nothing dropped), and what of it passes the rules (`OUT`)."""

from pathlib import Path

import pyarrow as pa

from qianyi.corpus.clean.judge import judge
from qianyi.corpus.clean.measure import measure
from qianyi.corpus.clean.rules import check_columns, from_json, load_kinds, own_rules, to_json
from qianyi.corpus.document import corpus_manifest
from qianyi.corpus.parts import Options, Writer, part_units, read_batches, run_parts
from qianyi.data.stage import Json
from qianyi.errors import ConfigError, DataError

MEASURED = "measured"
MEASURE: Json = {"version": 1}
"""Settings of the first stage; another version of what repair, masking and statistics do measures anew."""


def clean(corpora: list[Path], out: Path, rules: Path | None = None, options: Options | None = None) -> Json:
    """Measure corpora and filter them by the rules; see `filter_measured` for what is in `out`.

    Args:
        corpora: corpus directories; out: another; rules: a file laid over the shipped rules; options: how it is run.

    Returns:
        The manifest of `out`.

    Raises:
        ConfigError: the rules are wrong. DataError and ResourceError: see `run_parts`.
    """
    load_kinds(rules)  # what is wrong with them shows before the long part
    units = [unit for corpus in corpora for unit in part_units(corpus)]
    run_parts(out / MEASURED, "measure", MEASURE, units, measure_unit, corpora, options)
    return filter_measured(out / MEASURED, out, rules, options)


def filter_measured(measured: Path, out: Path, rules: Path | None = None, options: Options | None = None) -> Json:
    """Keep what passes the rules, by its columns alone.

    `out` holds the kept with a column `label_kind`, the dropped with the rule as reason, value and bound as detail, and in the
    manifest's counts `kind/KIND`, `alone/KIND/RULE` and `first/KIND/RULE` (see `Judgement`).

    Raises:
        ConfigError: the rules are wrong, or ask for a column that is not there. DataError and ResourceError: see `run_parts`.
    """
    kinds = load_kinds(rules)
    manifest = corpus_manifest(measured)
    if not manifest["documents"]:
        raise DataError(f"{measured}: holds no documents; look at what the stage before it dropped")
    columns = list(manifest["columns"])
    if "label_language" not in columns:
        raise ConfigError(f"{measured}: was not measured: it has no column `label_language`; `qianyi data clean` measures")
    check_columns(kinds, columns, measured)
    settings = {"kinds": to_json(kinds), "rules": own_rules(rules) if rules else []}
    return run_parts(out, "clean", settings, part_units(measured), filter_unit, [measured], options)


def measure_unit(unit: Json, settings: Json, writer: Writer) -> None:
    """Work of the first stage."""
    for batch in read_batches(Path(unit["part"])):
        measured, counts = measure(batch)
        writer.keep(measured)
        for name, n in counts.items():
            writer.count(name, n)


def filter_unit(unit: Json, settings: Json, writer: Writer) -> None:
    """Work of the second stage."""
    kinds = from_json(settings["kinds"])
    for batch in read_batches(Path(unit["part"])):
        judgement = judge(batch, kinds)
        for kind in judgement.kinds:
            writer.count(f"kind/{kind or 'none'}", 1)
        for name, n in judgement.alone.items():
            writer.count(f"alone/{name}", n)
            writer.count(f"first/{name}", judgement.first[name])
        passed = pa.array([not reason for reason in judgement.reasons])
        columns = {name: batch.column(name) for name in batch.schema.names} | {
            "label_kind": pa.array(judgement.kinds, pa.string())
        }
        labelled = pa.RecordBatch.from_pydict(columns)
        writer.keep(labelled.filter(passed))
        failed = [row for row, reason in enumerate(judgement.reasons) if reason]
        if failed:
            reasons, details = ([values[row] for row in failed] for values in (judgement.reasons, judgement.details))
            writer.drop(batch.take(pa.array(failed)), reasons, details)
