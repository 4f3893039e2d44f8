"""The command `vpo`: what people type.

Belongs here: arguments, printing, exit codes. Does not belong here: the work itself; each command calls the module
that does it, and imports it when it runs, so that `vpo --help` answers at once.

Exit codes: 0 all is well, 1 an asset failed, 2 something is wrong with what was asked for, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from vpo_assets.platform import Platform

OUR_PACKAGES = ("vpo_assets", "resources", "ml", "storage")
WRONG, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Turns every error that is meant for people into its own words and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        # Commands show their own progress; the bars of the libraries below would run through it.
        os.environ.setdefault("TQDM_DISABLE", "1")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            if os.environ.get("VPO_DEBUG") or not _is_for_people(error):
                raise
            typer.echo(_in_words(error), err=True)
            raise typer.Exit(WRONG) from None


app = typer.Typer(
    cls=_Commands,
    help="Train prompt optimizers for text-to-video models: data, feedback, checkpoints, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of `vpo`."""
    app()


Target = Annotated[str | None, typer.Option(help="A target of the profile; needed where it has more than one.")]


Assets = Annotated[
    list[str] | None, typer.Argument(help="Such as `queries` or `shapes/videos`; all, if none is named.")
]
Full = Annotated[bool, typer.Option("--full", help="Compute every row again.")]
Append = Annotated[bool, typer.Option("--append", help="Keep the rows of earlier recipes beside the new ones.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Compute so many rows of each asset at most.")]


@app.command()
def plan(
    assets: Assets = None,
    full: Full = False,
    append: Append = False,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show what a refresh would do, asset by asset and why, and what it should take; computes nothing."""
    from vpo_assets.plan_report import as_json as plain_data
    from vpo_assets.plan_report import grid, total
    from vpo_assets.planning import plan_all
    from vpo_assets.running import Options

    options = Options(full=full, append=append, limit=limit)
    plans = plan_all(_platform(), options.mode, limit, assets or [])
    if as_json:
        typer.echo(json.dumps(plain_data(plans), indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(grid(plans))
    for asset in plans:
        for reason in asset.why:
            console.print(_plain(f"{asset.asset}: {reason}"), soft_wrap=True, markup=False, highlight=False)
    console.print(_plain(total(plans)), soft_wrap=True, markup=False)


@app.command()
def materialize(
    assets: Assets = None,
    full: Full = False,
    append: Append = False,
    limit: Limit = None,
    accept_stale_inputs: Annotated[
        bool,
        typer.Option("--accept-stale-inputs", help="Go on although inputs were not made by what the profile names."),
    ] = False,
) -> None:
    """Bring assets up to date: the same run that the UI would start, shown there too."""
    from vpo_assets.instance import prepared_instance
    from vpo_assets.progress import RunProgress, console_beside_capture, run_log
    from vpo_assets.running import CodeLocation, Options, new_run_id

    profile = _profile()
    location = CodeLocation()
    options = Options(full=full, append=append, limit=limit, accept_stale_inputs=accept_stale_inputs)
    keys = location.select(assets or [])
    location.run_config(keys, options)  # options that do not apply are refused before anything is recorded
    run_id = new_run_id()
    log = run_log(profile.home, run_id)
    with prepared_instance(profile) as instance, log.open("a", encoding="utf-8") as stream:
        progress = RunProgress(console_beside_capture(), stream, location.steps)
        try:
            succeeded = location.execute(instance, keys, options, progress, run_id)
        finally:
            progress.close()
    for asset, reason in progress.failed.items():
        typer.echo(f"{asset}: {reason}" if progress.interrupted else f"{asset} failed: {reason}", err=True)
    waiting = [key.to_user_string() for key in keys if key.to_user_string() not in progress.done]
    skipped = [asset for asset in waiting if asset not in progress.failed]
    if not succeeded:
        if skipped:
            typer.echo(f"not done: {', '.join(skipped)}", err=True)
        typer.echo(f"everything that was logged: {log}", err=True)
        raise typer.Exit(INTERRUPTED if progress.interrupted else 1)
    typer.echo(f"{len(progress.done)} assets are up to date; log: {log}")


@app.command()
def ingest(
    files: Annotated[list[Path], typer.Argument(help="csv, tsv, json, jsonl, parquet or txt.")],
    column: Annotated[str | None, typer.Option(help="Column with the queries; else text, query or prompt.")] = None,
) -> None:
    """Take query files into the lake; bad rows go into quarantine with their line numbers."""
    from storage.ingestion import UnreadableFile, ingest
    from storage.tables import INGESTION_FAILURES
    from vpo_assets.prompts import take_down_of

    platform = _platform()
    lake, columns = platform.lake, platform.profile.queries.columns
    take_down = take_down_of(platform)
    unusable = False
    for file in files:
        try:
            report = ingest(lake, file, column, columns=columns, take_down=take_down)
        except UnreadableFile as error:
            typer.echo(_in_words(error), err=True)
            unusable = True
            continue
        typer.echo(
            _plain(
                f"{report.source}: {report.rows_read:,} rows read, {report.new:,} new, {report.known:,} known, "
                f"{report.failed:,} quarantined, {report.removed:,} removed, {report.taken_down:,} taken down, "
                f"{report.seconds:.1f} s"
            )
        )
        if report.failed:
            rows = lake.read(INGESTION_FAILURES, where="source_sha256 = ?", parameters=[report.sha256])
            for row in rows.sort_by("line").slice(0, 5).to_pylist():
                typer.echo(_plain(f"  line {row['line']}: {row['error']}: {row['excerpt']}"), err=True)
            if report.failed > 5:
                typer.echo(f"  and {report.failed - 5:,} more: table ingestion_failures", err=True)
        unusable |= report.failed == report.rows_read
    if unusable:
        raise typer.Exit(WRONG)


@app.command()
def trace(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Of a query, prompt, video, pair or checkpoint.")],
    rows: Annotated[int, typer.Option(min=0, help="Follow so many training rows of a checkpoint.")] = 3,
) -> None:
    """Show where something comes from: checkpoint, pairs, videos, prompts, query, source file."""
    from rich.console import Console

    from vpo_assets.trace import trace

    Console().print(trace(_platform(), identifier, rows))


@app.command()
def replay(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Id of a checkpoint.")],
    out: Annotated[
        Path | None, typer.Option(help="Keep the file there; those of ancestors beside it, by their ids.")
    ] = None,
    ancestors: Annotated[bool, typer.Option("--ancestors", help="Also what it was trained from.")] = False,
) -> None:
    """Rebuild the file that a checkpoint was trained on from the lake, and say whether it is the same."""
    from vpo_assets.replay import replay, with_ancestors

    platform = _platform()
    same = True
    for identifier in with_ancestors(platform, checkpoint) if ancestors else [checkpoint]:
        file = out if out is None or identifier == checkpoint else out.with_name(f"{identifier}.parquet")
        outcome = replay(platform, identifier, file)
        typer.echo(_plain(str(outcome)))
        same &= outcome.verdict.matches
    if not same:
        raise typer.Exit(1)


@app.command()
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say only what would be done.")] = False,
) -> None:
    """Take old snapshots, merge small files and remove what nobody needs; never what a checkpoint needs."""
    from vpo_assets.maintenance import maintain_home

    if dry_run:
        typer.echo("nothing is changed; this would be done:")
    for line in maintain_home(_platform(), dry_run=dry_run).lines():
        typer.echo(_plain(line))


@app.command()
def metrics(
    out: Annotated[
        Path | None, typer.Option(help="Replace this file instead, for the textfile collector of node_exporter.")
    ] = None,
) -> None:
    """Rows, quarantine, pace and last refresh of every table, as Prometheus reads them."""
    from vpo_assets.metrics_text import metrics_text, write_metrics

    if out is None:
        typer.echo(metrics_text(_platform()), nl=False)
    else:
        write_metrics(_platform(), out)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT, such as `SELECT * FROM shapes.videos LIMIT 5`.")],
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values instead of a table.")] = False,
) -> None:
    """Ask the lake: it is read only, and one table per asset."""
    with _platform().lake.read_only_connection() as connection:
        rows = connection.execute(query)
    if csv:
        import csv as comma_separated

        writer = comma_separated.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows.column_names)
        for batch in rows.to_batches():
            columns = [column.to_pylist() for column in batch.columns]
            writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for name in rows.column_names:
        grid.add_column(Text(_plain(name)), overflow="fold")
    for row in rows.slice(0, 200).to_pylist():
        grid.add_row(*(Text(_plain(str(_cell(value)))) for value in row.values()))
    console = Console()
    console.print(grid)
    more = ", the first 200 shown: use --csv or LIMIT for others" if rows.num_rows > 200 else ""
    console.print(f"{rows.num_rows:,} rows{more}", soft_wrap=True)


@app.command()
def evaluation(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    target: Target = None,
) -> None:
    """Show what the prompt optimizers are worth on held-out queries."""
    from vpo_assets.evaluation_tables import (
        chosen_target,
        evaluation_grids,
        evaluation_rows,
        evaluation_summary,
    )

    platform = _platform()
    name = chosen_target(platform, target)
    rows = evaluation_rows(platform, name)
    if as_json:
        typer.echo(json.dumps(evaluation_summary(rows), indent=2))
        return
    from rich.console import Console

    console = Console()
    for grid in evaluation_grids(rows):
        console.print(grid)
    report = platform.home / "reports" / f"{name}.html"
    if report.exists():
        console.print(_plain(f"With plots and clips: {report}"), soft_wrap=True, highlight=False)


@app.command()
def optimize(
    query: Annotated[str, typer.Argument(help="What the video should show; `-` reads a query a line.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Id of a checkpoint; else the best one of the evaluation.")
    ] = None,
    target: Target = None,
) -> None:
    """Rewrite a query into a prompt for the target video model."""
    from vpo_assets.evaluation_tables import best_checkpoint, chosen_target, evaluation_rows
    from vpo_assets.optimizing import PromptOptimizer, UnusableQuery

    platform = _platform()
    name = chosen_target(platform, target)
    if checkpoint is None:
        checkpoint, method, score = best_checkpoint(evaluation_rows(platform, name))
        typer.echo(f"checkpoint {checkpoint} ({method}, score {score:.3f} on {name})", err=True)
    else:
        typer.echo(f"checkpoint {_plain(checkpoint)}", err=True)
    optimizer = PromptOptimizer(platform, name, checkpoint)
    failed = False
    for line in _lines(query):
        try:
            prompt = optimizer.optimize(line)
        except UnusableQuery as error:
            typer.echo(_in_words(error), err=True)
            prompt, failed = "", True
        typer.echo(prompt)
        sys.stdout.flush()
    if failed:
        raise typer.Exit(WRONG)


@app.command()
def doctor() -> None:
    """Check the profile against this machine before anything is paid for."""
    from collections import Counter

    from rich.console import Console
    from rich.text import Text

    from resources.doctor import Level, ThisMachine, examine

    styles = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "bold red"}
    console = Console()
    found: Counter[Level] = Counter()
    for finding in examine(_profile(), ThisMachine()):
        found[finding.level] += 1
        line = Text.assemble(
            (f"{finding.level:<8}", styles[finding.level]), _plain(f"{finding.subject}: {finding.text}")
        )
        if finding.remedy:
            line.append(_plain(f" -> {finding.remedy}"))
        console.print(line, soft_wrap=True, highlight=False)
    faults, warnings = found[Level.FAULT], found[Level.WARNING]
    if faults or warnings:
        typer.echo(f"{faults} {'fault' if faults == 1 else 'faults'}, {warnings} warned of")
    else:
        typer.echo("all is well")
    if faults:
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Print the effective profile: file, environment and defaults together."""
    import yaml

    profile = _profile().model_dump(mode="json")
    typer.echo(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000) -> None:
    """Open the Dagster UI on this machine: the graph, the runs, and buttons to start them."""
    from vpo_assets.instance import prepared_instance
    from vpo_assets.running import WORKSPACE

    _refuse_used_port(port)
    profile = _profile()
    with prepared_instance(profile):
        pass  # what must hold before a run is started holds now; the UI opens the instance by DAGSTER_HOME
    os.environ["VPO_HOME"] = str(profile.home)
    typer.echo(f"http://127.0.0.1:{port}", err=True)
    arguments = ["-m", "dagster", "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 (our own interpreter, no shell)


class _PortInUse(RuntimeError):
    """Another program, perhaps another `vpo ui`, listens there."""


def _refuse_used_port(port: int) -> None:
    import socket

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise _PortInUse(f"port {port} cannot be used ({error.strerror}): vpo ui --port N takes another") from None


def _profile() -> Any:
    from resources.settings import load_profile

    return load_profile()


def _platform() -> "Platform":
    from vpo_assets.platform import Platform, quiet_libraries

    quiet_libraries()
    return Platform(_profile())


def _lines(query: str) -> Iterator[str]:
    """The query, or those of the standard input."""
    if query != "-":
        yield query
        return
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _is_for_people(error: Exception) -> bool:
    """Errors of our own packages are written to be read; so is what the operating system says of files."""
    return type(error).__module__.partition(".")[0] in OUR_PACKAGES or isinstance(error, OSError)


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "\n".join(_plain(line) for line in lines)


def _plain(text: str) -> str:
    """Text that cannot move the cursor or colour the terminal, whoever wrote it."""
    from vpo_assets.report.plain_text import readable

    return readable(text)


def _cell(value: Any) -> Any:
    """Lists and structs as JSON; missing values as nothing."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value


if __name__ == "__main__":
    main()
