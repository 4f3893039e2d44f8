"""The command `vpo`: what people type.

Belongs here: arguments, printing, exit codes. Does not belong here: the work itself; each command calls the module
that does it, and imports it when it runs, so that `vpo --help` answers at once.

Exit codes: 0 all is well, 1 an asset failed, 2 something is wrong with what was asked for, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from resources.prompt_optimizer import PromptOptimizer
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


Checkpoint = Annotated[str | None, typer.Option(help="Id of a checkpoint; else the best one of the evaluation.")]
Folder = Annotated[Path | None, typer.Option(help="A published model folder, instead of a checkpoint of the home.")]
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
    target: Annotated[str | None, typer.Option(help="One target of the profile; else all that are evaluated.")] = None,
    published: Annotated[bool, typer.Option("--published", help="The paper's own figures as well.")] = False,
) -> None:
    """Show what the prompt optimizers are worth on held-out queries."""
    from vpo_assets.published_tables import published_grids
    from vpo_assets.whole_evaluation import targets_to_show, whole_evaluation, whole_summary

    platform = _platform()
    targets = targets_to_show(platform, target)
    if as_json:
        typer.echo(json.dumps(whole_summary(platform, targets), indent=2))
        return
    from rich.console import Console

    console = Console()
    for part in (*whole_evaluation(platform, targets), *(published_grids() if published else ())):
        if isinstance(part, str):
            console.print(_plain(part), soft_wrap=True, highlight=False)
        else:
            console.print(part)


@app.command()
def optimize(
    query: Annotated[
        str | None, typer.Argument(help="What the video should show; `-` reads a query a line.", show_default=False)
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Queries of a csv, tsv, json, jsonl, parquet or txt file.")] = None,
    column: Annotated[str | None, typer.Option(help="Its column with the queries; else text, query or prompt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, errors among them.")] = False,
    checkpoint: Checkpoint = None,
    target: Target = None,
    folder: Folder = None,
) -> None:
    """Rewrite queries into prompts for the target video model; what the offline judge refuses is not given out."""
    from resources.prompt_optimizer import OptimizedPrompt
    from vpo_assets.optimizing import (
        Query,
        answered,
        queries_of_file,
        queries_of_lines,
    )
    from vpo_assets.optimizing import as_json as plain_data

    if (query is None) == (file is None):
        raise typer.BadParameter("name a query, `-` for the standard input, or --file FILE")
    profile = _profile()
    optimizer = _optimizer(folder, checkpoint, target)
    together = profile.refresh.text_batch
    queries: Iterable[Query]
    if file is not None:
        queries = queries_of_file(file, column, profile.queries.columns)
    elif query == "-":
        queries = queries_of_lines(sys.stdin.buffer)
        together = 1 if sys.stdin.isatty() else together  # whoever types waits for an answer
    else:
        queries = [Query(1, query or "")]
    failed = False
    for asked, answer in answered(optimizer, queries, together):
        if as_json:
            typer.echo(json.dumps(plain_data(asked, answer)))  # in ASCII: nothing in it can move the cursor
        else:
            typer.echo(_plain(answer.prompt) if isinstance(answer, OptimizedPrompt) else "")
        if isinstance(answer, Exception):
            failed = True
            place = "" if file is None and query != "-" else f"line {asked.line}: "
            typer.echo(f"{place}{_in_words(answer)}", err=True)
        sys.stdout.flush()
    if failed:
        raise typer.Exit(WRONG)


@app.command()
def serve(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 for any free one. [default: serving.port]")
    ] = None,
    backend: Annotated[
        Literal["transformers", "vllm"] | None, typer.Option(help="What runs the model; else as the profile's policy.")
    ] = None,
    checkpoint: Checkpoint = None,
    target: Target = None,
    folder: Folder = None,
) -> None:
    """Serve the optimizer on this machine as OpenAI's chat completions: clients send the plain query."""
    from resources.local_port import taken_port
    from resources.serving.server import serve as serve_until_ended
    from resources.serving.server import serving_key

    key = serving_key()
    settings = _profile().serving
    with taken_port(settings.port if port is None else port, "vpo serve") as taken:
        optimizer = _optimizer(folder, checkpoint, target, backend)
        serve_until_ended(
            optimizer, settings, taken, key, lambda port: typer.echo(f"http://127.0.0.1:{port}/v1", err=True)
        )


@app.command()
def publish(
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The model's repository; the dataset's is NAME-data.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Send the folders, with the token of HF_TOKEN.")] = False,
    only: Annotated[Literal["model", "dataset"] | None, typer.Option(help="One folder instead of both.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see; else repositories are private.")] = False,
    checkpoint: Checkpoint = None,
    target: Target = None,
) -> None:
    """Write model and dataset as folders that are ready for the hub, and say what would be sent; --push sends it."""
    from rich.console import Console

    from resources import hub
    from vpo_assets.optimizing import chosen_checkpoint
    from vpo_assets.publishing.folders import publish_dataset, publish_model
    from vpo_assets.report.tables import console_table

    if push and repo is None:
        raise typer.BadParameter("--push needs --repo OWNER/NAME")
    repositories = {}
    if repo is not None:
        hub.checked_repository(repo)
        repositories = {"model": repo, "dataset": hub.checked_repository(f"{repo}-data")}
    if push:
        hub.token()  # before any work is done
    platform = _platform()
    chosen = chosen_checkpoint(platform, target, checkpoint)
    typer.echo(_plain(chosen.words), err=True)
    makers = {"model": publish_model, "dataset": publish_dataset}
    folders = [
        make(platform, chosen.target, chosen.checkpoint_id) for kind, make in makers.items() if only in (None, kind)
    ]
    console = Console()
    for folder in folders:
        where = f" -> {repositories[folder.kind]}" if repositories else ""
        seen_by = "public" if public else "private"
        typer.echo(_plain(f"{folder.kind}{where}, {seen_by}, licence {folder.licence.shown}: {folder.folder}"))
        console.print(console_table(hub.uploaded(folder.files)))
    if not push:
        typer.echo("nothing was sent: --repo OWNER/NAME --push does that")
        return
    for folder in folders:
        kind: Literal["model", "dataset"] = "model" if folder.kind == "model" else "dataset"
        address = hub.push(
            folder.folder, repositories[kind], kind, message=f"{folder.checkpoint_id} ({kind})", public=public
        )
        typer.echo(_plain(address))


@app.command()
def look(
    target: Target = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3001,
    methods: Annotated[
        str | None, typer.Option(help="Methods that people compare blindly, such as `original,vpo`; else all.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write it into this folder instead, to be opened from there.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=2000, help="So many pairs and queries go into the folder.")] = 200,
) -> None:
    """Look at pairs, clips and training side by side in a browser, and vote blindly."""
    from vpo_assets.evaluation_tables import chosen_target

    platform = _platform()
    name = chosen_target(platform, target)
    if export is not None:
        from vpo_assets.viewer.export import export as write

        typer.echo(_plain(str(write(platform, name, export, rows))))
        return
    from resources.local_port import taken_port
    from vpo_assets.viewer.application import Viewer
    from vpo_assets.viewer.server import serve

    viewer, taken = Viewer(platform, name, methods), taken_port(port, "vpo look")
    typer.echo(f"http://127.0.0.1:{port}", err=True)
    serve(viewer, taken)


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
    from resources.local_port import taken_port
    from vpo_assets.instance import prepared_instance
    from vpo_assets.running import WORKSPACE

    taken_port(port, "vpo ui").close()  # Dagster takes it itself, and says less where it cannot
    profile = _profile()
    with prepared_instance(profile):
        pass  # what must hold before a run is started holds now; the UI opens the instance by DAGSTER_HOME
    os.environ["VPO_HOME"] = str(profile.home)
    typer.echo(f"http://127.0.0.1:{port}", err=True)
    arguments = ["-m", "dagster", "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 (our own interpreter, no shell)


def _profile() -> Any:
    from resources.settings import load_profile

    return load_profile()


def _platform() -> "Platform":
    from vpo_assets.platform import Platform, quiet_libraries

    quiet_libraries()
    return Platform(_profile())


def _optimizer(
    folder: Path | None,
    checkpoint: str | None,
    target: str | None,
    backend: Literal["transformers", "vllm"] | None = None,
) -> "PromptOptimizer":
    """The optimizer of a published folder or of a checkpoint; says on the standard error which one it is."""
    from resources.prompt_optimizer import PromptOptimizer
    from vpo_assets.optimizing import chosen_checkpoint, optimizer_of

    if folder is None:
        platform = _platform()
        chosen = chosen_checkpoint(platform, target, checkpoint)
        optimizer, words = optimizer_of(platform, chosen, backend), chosen.words
    elif checkpoint or target:
        raise typer.BadParameter("--folder is an optimizer by itself: leave out --checkpoint and --target")
    else:
        from vpo_assets.platform import quiet_libraries

        quiet_libraries()
        optimizer = PromptOptimizer.from_folder(folder, backend=backend or "transformers")
        words = f"{optimizer.settings.name} of {folder}"
    typer.echo(_plain(words), err=True)
    return optimizer


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
